"""Labels raised by a logit bias, with the real embedded server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distill_dagster.config import TeacherSpec
from distill_dagster.prompts.few_shot import build_prompt_context, read_example_pool
from distill_dagster.prompts.templates import Templates
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt
from distill_dagster.teacher.asking.requests import RequestBuilder
from distill_dagster.teacher.asking.soft_labels import list_next_words
from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.client import Endpoint, ask_once
from distill_dagster.teacher.providers.embedded import EMBEDDED_SERVERS
from distill_dagster.teacher.providers.exchange import Response
from tests.support.task import write_small_task

TEXTS = ("the parcel never came", "I want my money back", "lasagna with spinach")
EMBEDDED = {"model": "embedded/smollm2-135m-instruct", "temperature": 0.0, "max_tokens": 1}


def ask(folder: Path, endpoint: Endpoint, **teacher: Any) -> list[Response]:
    task = write_small_task(folder, teacher=EMBEDDED | teacher)
    requests = RequestBuilder(
        task.task, Templates({}), read_example_pool(build_prompt_context(task.examples, set())), endpoint
    )

    async def answers() -> list[Response]:
        return [
            await ask_once(endpoint, requests.build(AskedPrompt(text), draw), 60.0) for text in TEXTS for draw in (0, 1)
        ]

    return event_loop.run_in_loop(answers())


def test_boosted_labels_keep_their_ratios(tmp_path: Path, models_folder: Path) -> None:
    spec = TeacherSpec(model=EMBEDDED["model"], few_shot={"draws": 2})  # type: ignore[arg-type]
    endpoint, lease = EMBEDDED_SERVERS.acquire(spec, models_folder)
    try:
        plain = ask(tmp_path / "plain", endpoint, top_logprobs=5000)
        boosted = ask(tmp_path / "boosted", endpoint, top_logprobs=10, boost_labels=True)
    finally:
        EMBEDDED_SERVERS.release(lease)
    tokens, compared = [" refund", " delivery", " login"], 0
    for before, behind in zip(plain, boosted, strict=True):
        whole, few = dict(before.positions[0]), dict(behind.positions[0])
        assert set(tokens) <= set(few), "all labels are among ten tokens"
        listed = [token for token in tokens if token in whole]
        for token in listed[1:]:
            compared += 1
            assert few[token] - few[listed[0]] == pytest.approx(whole[token] - whole[listed[0]], abs=0.05)
    assert compared >= 6


def test_next_words() -> None:
    labels = ["card lost", "card", "cardboard box", "top-up failed"]
    assert list_next_words(labels) == [" card", " cardboard", " top-up"]
    assert list_next_words(labels, "card") == ["\n", " lost", "board"], "a label that is finished ends its line"
    assert list_next_words(labels, "top") == ["-up"]
    assert list_next_words(labels, "nothing") == []


def test_only_a_text_api_with_probabilities_takes_it() -> None:
    for wrong in ({"api": "chat", "soft_labels": "logprobs"}, {"api": "text", "soft_labels": "votes"}):
        with pytest.raises(ValidationError, match="boost_labels needs"):
            TeacherSpec(model="openai/fake", boost_labels=True, **wrong)  # type: ignore[arg-type]
