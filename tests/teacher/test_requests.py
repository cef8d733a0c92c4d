"""Requests: their content, their keys, and the endpoints they go to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.config import TeacherSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt
from distill_dagster.teacher.providers.attempts import AttemptError
from distill_dagster.teacher.providers.client import Endpoint, ask_once, resolve_endpoint
from distill_dagster.teacher.providers.exchange import Request
from tests.support.task import build_request_builder, write_small_task
from tests.support.waiting import HANG_S


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-provider")
    monkeypatch.setenv("MY_KEY", "sk-of-mine")


def keys(tmp_path: Path, name: str, text: str = "a text", sample: int = 0, **changes: Any) -> str:
    folder = write_small_task(tmp_path / name, **changes)
    return build_request_builder(folder).build(AskedPrompt(text), sample).key


@pytest.mark.parametrize(
    "change",
    [
        {"api_base": "http://127.0.0.1:9/v1"},
        {"api_key_env": "MY_KEY"},
        {"concurrency": 99},
        {"timeout_s": 1},
        {"max_retries": 0},
        {"min_success": 0.1},
        {"resolve_labels": True},
        {"calibration": "examples"},
    ],
    ids=str,
)
def test_a_key_does_not_depend_on_address_or_speed(change: dict[str, Any], tmp_path: Path) -> None:
    assert keys(tmp_path, "a", teacher=change) == keys(tmp_path, "b")


@pytest.mark.parametrize("system", ["Sort this.", "Sort this: {{ text }}"])
def test_the_shared_part_of_requests_is_built_once(tmp_path: Path, system: str) -> None:
    folder = write_small_task(tmp_path / "a", teacher={"api": "chat", "soft_labels": "votes"})
    (folder.path / "templates").mkdir()
    (folder.path / "templates" / "classification_system.j2").write_text(system)
    requests = build_request_builder(folder)
    asked = {
        text: requests.build(AskedPrompt(text), sample).messages or []
        for text in ("one", "two")
        for sample in (0, 1, 0)
    }
    for text, messages in asked.items():
        assert messages[0]["content"] == system.replace("{{ text }}", text)
        assert messages[-1]["content"] == text
        assert len(messages) == 1 + 2 * 3 + 1


@pytest.mark.parametrize("change", [{"description": "Other words."}, {"curation": {"min_rows": 3}}], ids=str)
def test_a_key_does_not_depend_on_the_rest_of_the_task(change: dict[str, Any], tmp_path: Path) -> None:
    assert keys(tmp_path, "a", **change) == keys(tmp_path, "b")


@pytest.mark.parametrize(
    "change",
    [
        {"model": "openai/other"},
        {"revision": "2026-01"},
        {"temperature": 0.5},
        {"max_tokens": 5},
        {"top_logprobs": 5},
        {"soft_labels": "votes"},
        {"api": "chat"},
        {"few_shot": {"per_label": 2}},
        {"few_shot": {"seed": 5}},
    ],
    ids=str,
)
def test_a_key_depends_on_everything_that_shapes_the_answer(change: dict[str, Any], tmp_path: Path) -> None:
    assert keys(tmp_path, "a", teacher=change) != keys(tmp_path, "b")


def test_a_key_depends_on_text_sample_and_examples(tmp_path: Path) -> None:
    base = keys(tmp_path, "a")
    assert keys(tmp_path, "b", text="another") != base
    assert keys(tmp_path, "c", sample=1) != base
    same: dict[str, Any] = {
        "teacher": {"few_shot": {"per_label": 0}}
    }  # no examples: the prompts of both samples are equal
    assert keys(tmp_path, "d", **same) != keys(tmp_path, "e", sample=1, **same)


def test_a_key_depends_on_the_template(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path)
    before = build_request_builder(folder)
    (folder.path / "templates").mkdir()
    (folder.path / "templates" / "classification_text.j2").write_text("{{ text }} ->")
    after = build_request_builder(folder)
    assert before.build(AskedPrompt("x"), 0).key != after.build(AskedPrompt("x"), 0).key
    assert before.templates.version != after.templates.version
    assert after.build(AskedPrompt("x"), 0).prompt == "x ->"


def test_the_slice_is_in_no_request(tmp_path: Path) -> None:
    for api in ("text", "chat"):
        folder = write_small_task(tmp_path / api, teacher={"api": api})
        asked = str(build_request_builder(folder).build(AskedPrompt("a text"), 0))
        assert "web" not in asked.lower()
        assert "shop_mail" not in asked


def test_both_shapes_of_a_prompt(tmp_path: Path) -> None:
    text = build_request_builder(write_small_task(tmp_path / "text")).build(AskedPrompt("two\n  lines"), 0, "log")
    assert text.prompt is not None
    assert text.messages is None
    *examples, last = text.prompt.splitlines()
    assert last == "two lines => log"
    assert sorted(line.rpartition(" => ")[2] for line in examples) == ["delivery", "login", "refund"]
    chat = build_request_builder(write_small_task(tmp_path / "chat", teacher={"api": "chat"})).build(
        AskedPrompt("two\n  lines"), 0
    )
    assert chat.prompt is None
    assert chat.messages is not None
    assert [m["role"] for m in chat.messages] == ["system", *["user", "assistant"] * 3, "user"]
    assert "- delivery: is about delivery" in chat.messages[0]["content"]
    assert chat.messages[-1]["content"] == "two\n  lines"
    assert chat.params == {"temperature": 0.0, "max_tokens": 4, "logprobs": True, "top_logprobs": 20}


def spec(**changes: Any) -> TeacherSpec:
    return TeacherSpec(**({"model": "openai/fake", "api": "text", "terms": {"acknowledged": True}} | changes))


def test_an_own_address_gets_a_key_only_if_the_task_names_it() -> None:
    own = "http://127.0.0.1:9/v1"
    assert resolve_endpoint(spec(api_base=own)).api_key == "no-key"
    assert resolve_endpoint(spec(api_base=own, api_key_env="MY_KEY")).api_key == "sk-of-mine"
    assert resolve_endpoint(spec(api_key_env="MY_KEY")).api_key == "sk-of-mine"
    assert resolve_endpoint(spec()).api_key is None  # litellm takes the provider's own


def test_the_model_of_an_endpoint() -> None:
    assert resolve_endpoint(spec()).model == "text-completion-openai/fake"
    assert resolve_endpoint(spec(api="chat")).model == "openai/fake"
    assert resolve_endpoint(spec(model="anthropic/x", api="chat")).model == "anthropic/x"
    assert (
        resolve_endpoint(spec()).identity
        == resolve_endpoint(spec(api_base="http://127.0.0.1:9", api_key_env="MY_KEY")).identity
    )
    assert resolve_endpoint(spec()).identity != resolve_endpoint(spec(revision="r")).identity


def test_a_missing_key_is_reported_before_the_first_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(TeacherError, match=r"MY_KEY, which is not set\. Set it, or fix teacher\.api_key_env"):
        resolve_endpoint(spec(api_key_env="MY_KEY"))
    with pytest.raises(TeacherError, match="OPENAI_API_KEY, which is not set"):
        resolve_endpoint(spec())


def test_the_text_of_an_endpoint_has_no_key() -> None:
    endpoint = resolve_endpoint(spec(api_key_env="MY_KEY"))
    assert "sk-of-mine" not in f"{endpoint!r} {endpoint}"


@pytest.mark.parametrize(("model", "sent"), [("openai/fake", True), ("anthropic/claude-3-5-sonnet-20240620", False)])
def test_a_seed_is_sent_only_to_providers_that_support_it(
    model: str, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litellm

    caught: dict[str, Any] = {}

    async def acompletion(**kwargs: Any) -> None:
        caught.update(kwargs)
        raise litellm.exceptions.BadRequestError("enough", model, "test")

    monkeypatch.setattr(litellm, "acompletion", acompletion)
    request = Request(
        "i", 3, {"temperature": 0.5, "max_tokens": 4, "seed": 3}, messages=[{"role": "user", "content": "x"}]
    )
    with pytest.raises(AttemptError, match="enough"):
        asyncio.run(ask_once(Endpoint(model, "i"), request, 5.0))
    assert ("seed" in caught) is sent
    assert caught["temperature"] == 0.5


def test_asking_what_an_unknown_model_accepts_prints_nothing() -> None:
    """stdout of a command with `--json` is one JSON object."""
    code = (
        "from distill_dagster.teacher.providers.capabilities import takes_schema, takes_tools, adapt_params;"
        "print(takes_schema('embedded/x', 'auto'), takes_tools('embedded/x', 'auto'),"
        " adapt_params('embedded/x', {'temperature': 1, 'max_tokens': 2}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert done.stdout == "False False {'temperature': 1, 'max_tokens': 2}\n"
