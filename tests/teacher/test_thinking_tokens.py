"""Models that think before they answer: which ones are known, what they are allowed, and what their API takes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.config import JudgeSpec, TeacherSpec
from distill_dagster.config.thinking_models import THINKING_TIMEOUT_S, THINKING_TOKENS, is_thinking_model
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.prompts.seeds import build_seed_prompts
from distill_dagster.teacher.asking.ask import run_ask
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt
from distill_dagster.teacher.completions.batch_files import build_request_line
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.imagine.plan import Imaginer
from distill_dagster.teacher.judge.requests import Judge
from distill_dagster.teacher.providers.client import Endpoint
from distill_dagster.teacher.providers.exchange import Request
from distill_dagster.teacher.providers.prices import compute_worst_case
from tests.support.kind_folder import write_kind_folder
from tests.support.provider import FakeProvider
from tests.support.task import build_asker, build_request_builder, write_small_task

URL = "http://127.0.0.1:9/v1"
VOTES: dict[str, Any] = {"api": "chat", "soft_labels": "votes", "max_tokens": 16}
THINKER = "ollama_chat/qwen3"


@pytest.mark.parametrize(
    "model",
    [
        "openai/o1",
        "azure/o3-mini",
        "openrouter/openai/gpt-5-mini",
        "ollama/gpt-oss:20b",
        "deepseek/deepseek-reasoner",
        "ollama/deepseek-r1:8b",
        "openai/Qwen/QwQ-32B",
        "ollama_chat/qwen3",
        "openai/Qwen/Qwen3-30B-A3B-Thinking-2507",
        "mistral/magistral-small-latest",
        "gemini/gemini-2.5-flash",
        "xai/grok-4",
        "openai/zai-org/GLM-4.6",
        "minimax/MiniMax-M2",
        "openai/microsoft/Phi-4-reasoning",
        "openai/ByteDance-Seed/Seed-OSS-36B-Instruct",
    ],
)
def test_models_that_think(model: str) -> None:
    spec = TeacherSpec.model_validate({"model": model})
    assert (spec.allowed_thinking_tokens, spec.timeout_s) == (THINKING_TOKENS, THINKING_TIMEOUT_S)
    assert TeacherSpec.model_validate({"model": model, "timeout_s": 7}).timeout_s == 7
    judge = {"model": model, "rubric": [{"name": "good", "description": "d"}]}
    as_teacher = JudgeSpec.model_validate(judge).to_teacher_spec(TeacherSpec(model="openai/gpt-4o"))
    assert (as_teacher.allowed_thinking_tokens, as_teacher.timeout_s) == (THINKING_TOKENS, THINKING_TIMEOUT_S)


@pytest.mark.parametrize(
    "model",
    [
        "openai/gpt-4o-mini",
        "openai/gpt-5-chat-latest",
        "openai/gpt-5.1",
        "openai/Qwen/Qwen3-4B-Instruct-2507",
        "dashscope/qwen3-max",
        "gemini/gemini-2.5-flash-lite",
        "xai/grok-4-fast-non-reasoning",
        "anthropic/claude-sonnet-4-5",
        "deepseek/deepseek-chat",
        "openai/my-gguf",
        "embedded/smollm2-135m-instruct",
        "replay/gpt-5",
    ],
)
def test_models_that_do_not_think(model: str) -> None:
    spec = TeacherSpec.model_validate({"model": model})
    assert spec.allowed_thinking_tokens == 0
    assert spec.timeout_s == (THINKING_TIMEOUT_S if is_thinking_model(model) else 60)


def build(folder: Path, **teacher: Any) -> Request:
    made = write_small_task(folder, teacher=VOTES | {"model": THINKER} | teacher)
    return build_request_builder(made).build(AskedPrompt("where is it"), 0)


def test_the_allowance_is_sent_and_is_no_part_of_the_key(tmp_path: Path) -> None:
    request = build(tmp_path)
    assert request.params["max_tokens"] == 16
    assert request.build_body()["max_tokens"] == request.max_answer_tokens == 16 + THINKING_TOKENS
    assert dataclasses.replace(request, thinking_tokens=0).key == request.key, "stored answers stay valid"
    reserved = compute_worst_case(request, None).tokens
    assert (
        reserved == compute_worst_case(dataclasses.replace(request, thinking_tokens=0), None).tokens + THINKING_TOKENS
    )


def test_a_number_of_the_user_is_part_of_the_key(tmp_path: Path) -> None:
    keys = set()
    for number in (None, 0, 100, THINKING_TOKENS):
        request = build(tmp_path / str(number), **({} if number is None else {"thinking_tokens": number}))
        body = request.build_body()
        assert body["max_tokens"] == 16 + (THINKING_TOKENS if number is None else number)
        assert "thinking_tokens" not in body
        keys.add(request.key)
    assert len(keys) == 4, "with another number, cut answers are asked for again"
    base = TeacherSpec(model=THINKER).dump_result_settings()
    assert "thinking_tokens" not in base, "homes without the setting stay fresh"
    assert TeacherSpec(model=THINKER, thinking_tokens=9).dump_result_settings() == base | {"thinking_tokens": 9}


def test_raw_completions_do_not_think(tmp_path: Path) -> None:
    assert build(tmp_path, api="text").build_body()["max_tokens"] == 16


@pytest.mark.parametrize("kind", ["math", "tool_call", "generation"])
def test_written_answers(tmp_path: Path, kind: str) -> None:
    folder = write_kind_folder(tmp_path, kind, URL, teacher={"model": THINKER})
    request = build_request_builder(folder).build(AskedPrompt("2 and 2"), 0)
    assert request.build_body()["max_tokens"] == 1024 + THINKING_TOKENS


def test_judging_and_imagining(tmp_path: Path) -> None:
    rubric = [{"name": "correct", "description": "the category fits"}]
    judge = {"model": THINKER, "rubric": rubric}
    folder = write_small_task(tmp_path, teacher=VOTES, judge=judge, imagine={"teacher": THINKER})
    row = {"messages": [{"role": "user", "content": "x"}], "answer": '"refund"', "reasoning": None}
    asked = Judge(folder.task, {}, "j").build_request(row)
    assert asked.build_body()["max_tokens"] == 1000 + THINKING_TOKENS
    slice_ = folder.read_slice("shop")
    imaginer = Imaginer(folder.task, "shop", slice_, [], {}, "i")
    request = imaginer.build_request(imaginer.plan_jobs(slice_.imagination, 1)[0], 0)
    assert request.build_body()["max_tokens"] == 1000 + THINKING_TOKENS


@pytest.mark.parametrize(
    ("model", "limits", "temperature"),
    [
        ("openai/o3-mini", {"max_completion_tokens": 16 + THINKING_TOKENS}, None),
        ("openai/gpt-5", {"max_completion_tokens": 16 + THINKING_TOKENS}, None),
        ("openai/gpt-4o-mini", {"max_tokens": 16}, 0.0),
    ],
)
def test_what_openai_takes(tmp_path: Path, model: str, limits: dict[str, int], temperature: float | None) -> None:
    request = build(tmp_path / "batch", model=model, api_base=URL)
    line = json.loads(build_request_line(Endpoint(model, "i"), TeacherSpec(model=model), request))
    with FakeProvider([], answer=lambda seen: "refund") as provider:
        folder = write_small_task(tmp_path / "online", teacher=VOTES | {"model": model, "api_base": provider.url})
        store = CompletionStore.open_in_folder(tmp_path / "store")
        prompts = build_seed_prompts("shop", folder.read_slice("shop"), answers=False)
        rows = run_ask(build_asker(folder, store), prompts).completions
        store.close()
    assert set(rows["answer"]) == {'"refund"'}
    for body in (line["body"], provider.requests[0].body):
        assert {name: value for name, value in body.items() if name.startswith("max_")} == limits
        assert body.get("temperature") == temperature


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"model": THINKER}, f"{THINKER} thinks before it answers. It is allowed 4096 tokens for that"),
        ({"model": THINKER, "thinking_tokens": 100}, "100 tokens are often too few"),
        ({"model": THINKER, "thinking_tokens": 0}, "0 tokens are often too few"),
        ({"model": THINKER, "thinking_tokens": 9000}, None),
        ({"model": THINKER, "api": "text"}, None),
        ({"model": "ollama_chat/llama3.1"}, None),
    ],
)
def test_a_check_says_what_a_model_is_allowed(tmp_path: Path, teacher: dict[str, Any], message: str | None) -> None:
    folder = write_small_task(tmp_path, teacher=VOTES | teacher)
    found = [problem for problem in check_task_folder(folder) if "thinks" in problem.message]
    assert len(found) == (message is not None)
    for problem in found:
        assert message is not None
        assert message in problem.message
        assert (problem.severity, problem.line is not None) == ("warning", True)
        assert "teacher.thinking_tokens" in problem.remedy
