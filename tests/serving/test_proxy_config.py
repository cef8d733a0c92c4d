"""LiteLLM's proxy as in docs/serving.md spreads requests, and asks the teacher if no server answers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from distill_dagster.core.paths import PROJECT_FOLDER
from tests.support.provider import FakeProvider

CLOSED = "http://127.0.0.1:9/v1"


def read_config(monkeypatch: pytest.MonkeyPatch, servers: list[str], teacher: str) -> dict[str, Any]:
    monkeypatch.setenv("DISTILL_API_KEY", "k-of-a-test")
    page = (PROJECT_FOLDER / "docs" / "serving.md").read_text(encoding="utf-8")
    block = re.search(r"(?m)^    model_list:\n(?:    .*\n)+", page)
    assert block is not None
    config: dict[str, Any] = yaml.safe_load(block.group())
    *rows, last = [row["litellm_params"] for row in config["model_list"]]
    for row, address in zip(rows, servers, strict=True):
        row["api_base"] = address
    last |= {"api_base": teacher, "api_key": "unused"}
    return config


def ask(config: dict[str, Any]) -> str:
    import litellm

    router = litellm.Router(model_list=config["model_list"], **config["router_settings"])
    answer = router.completion("my_task", [{"role": "user", "content": "Where is my parcel?"}], max_tokens=3)
    return str(answer.choices[0].message.content)


def test_one_server_is_enough_and_the_teacher_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        FakeProvider([], answer=lambda seen: "student") as student,
        FakeProvider([], answer=lambda seen: "teacher") as teacher,
    ):
        for _ in range(8):  # the first server is chosen by chance
            assert ask(read_config(monkeypatch, [CLOSED, student.url], teacher.url)) == "student"
        assert {seen.authorization for seen in student.requests} == {"Bearer k-of-a-test"}
        assert teacher.requests == []
        assert ask(read_config(monkeypatch, [CLOSED, CLOSED], teacher.url)) == "teacher"
