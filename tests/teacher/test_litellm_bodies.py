"""Bodies and errors that come through litellm, which translates some words and chooses errors by others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from distill_dagster.teacher.providers import event_loop
from distill_dagster.teacher.providers.attempts import AttemptError, ContentFilterError
from distill_dagster.teacher.providers.client import Endpoint, ask_once
from distill_dagster.teacher.providers.exchange import Request, Response
from tests.support.provider import FakeProvider, Fault

MODELS = ["deepseek/m", "mistral/m", "openrouter/by/m", "hosted_vllm/m", "text-completion-openai/m"]
USAGE = {"prompt_tokens": 30, "completion_tokens": 4, "total_tokens": 34}
by_model = pytest.mark.parametrize("model", MODELS)


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with FakeProvider([], answer=lambda _: "refund") as provider:
        yield provider


def ask(provider: FakeProvider, model: str) -> Response:
    params = {"temperature": 0.0, "max_tokens": 4}
    if model.startswith("text"):
        request = Request("i", 0, params, prompt="x\nx =>")
    else:
        request = Request("i", 0, params, messages=[{"role": "user", "content": "x"}])
    return event_loop.run_in_loop(ask_once(Endpoint(model, "i", provider.url, "a-key-of-a-test"), request, 300.0))


def fail(provider: FakeProvider, model: str) -> AttemptError:
    with pytest.raises(AttemptError) as caught:
        ask(provider, model)
    return caught.value


def set_choice(provider: FakeProvider, **fields: Any) -> None:
    def change(body: dict[str, Any], _: Any) -> dict[str, Any]:
        body["choices"][0] |= fields
        return body | {"usage": USAGE}

    provider.change_body = change


@by_model
@pytest.mark.parametrize("word", ["network_error", "insufficient_system_resource", "abort", "a word of tomorrow", None])
def test_a_broken_off_answer_is_no_answer(provider: FakeProvider, model: str, word: str | None) -> None:
    set_choice(provider, finish_reason=word)
    error = fail(provider, model)
    assert "finish_reason" in str(error)
    assert error.maybe_billed
    assert error.answer is not None
    assert (error.answer.prompt_tokens, error.answer.completion_tokens) == (30, 4)


@by_model
@pytest.mark.parametrize(
    ("word", "meaning"), [("model_length", "length"), ("MAX_TOKENS", "length"), ("SAFETY", "content_filter")]
)
def test_a_reason_in_other_words_has_its_meaning(provider: FakeProvider, model: str, word: str, meaning: str) -> None:
    set_choice(provider, finish_reason=word)
    assert ask(provider, model).finish_reason == meaning


@pytest.mark.parametrize("model", MODELS[:-1])
def test_contents_that_litellm_does_not_read(provider: FakeProvider, model: str) -> None:
    set_choice(provider, message={"role": "assistant", "content": [{"type": "text", "text": "refund"}]})
    assert ask(provider, model).text == "refund"
    call = {"id": "c", "type": "function", "function": {"name": "find", "arguments": {"n": 4}}}
    set_choice(provider, message={"role": "assistant", "content": None, "tool_calls": [call]})
    assert ask(provider, model).tool_calls == [{"name": "find", "arguments": '{"n": 4}'}]
    set_choice(provider, message={"role": "assistant", "content": {"label": "refund"}})
    assert "an object without a text" in str(fail(provider, model))


@by_model
def test_a_body_without_an_answer_counts_its_tokens(provider: FakeProvider, model: str) -> None:
    provider.change_body = lambda body, _: body | {"choices": [], "usage": USAGE}
    error = fail(provider, model)
    assert "`choices` is empty" in str(error)
    assert error.answer is not None
    assert error.answer.prompt_tokens == 30


@by_model
def test_an_error_with_http_200_means_what_its_code_says(provider: FakeProvider, model: str) -> None:
    provider.change_body = lambda *_: {"error": {"code": 429, "message": "slow down"}}
    error = fail(provider, model)
    assert (error.retry, error.overload, error.maybe_billed) == (True, True, False)
    assert "slow down" in str(error)


@by_model
@pytest.mark.parametrize("words", ["content_policy_violation invalid_request_error", "rate limit", "context window"])
def test_words_of_the_prompt_in_an_error_decide_nothing(provider: FakeProvider, model: str, words: str) -> None:
    message = f"value is not a list: '{words}, insufficient_quota'"
    provider.fail = lambda *_: Fault(400, json.dumps({"error": {"message": message, "type": "BadRequestError"}}))
    error = fail(provider, model)
    assert (error.retry, error.overload, error.permanent) == (False, False, False)
    assert words in str(error)


@by_model
def test_a_content_filter_is_known_by_its_code(provider: FakeProvider, model: str) -> None:
    provider.fail = lambda *_: Fault(400, '{"error": {"message": "no", "code": "content_filter"}}')
    with pytest.raises(ContentFilterError):
        ask(provider, model)
