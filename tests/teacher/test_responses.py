"""Bodies of providers: all forms of an answer are read, and what cannot be read says what came."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.teacher.providers import responses
from distill_dagster.teacher.providers.attempts import AttemptError, ContentFilterError
from distill_dagster.teacher.providers.body_parts import UNKNOWN_LOGPROB, read_count, read_positions
from distill_dagster.teacher.providers.exchange import Response
from distill_dagster.teacher.providers.responses import READER_FAILED, parse_response
from tests.support.odd_bodies import CHAT, TEXT, make_odd_bodies

USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}


def body(content: Any = "late", finish: Any = "stop", usage: Any = USAGE, **fields: Any) -> dict[str, Any]:
    """A chat body; `fields` go into its message."""
    message = {"role": "assistant", "content": content} | fields
    return {"model": "m", "choices": [{"index": 0, "finish_reason": finish, "message": message}], "usage": usage}


def fail(value: Any, **kwargs: Any) -> AttemptError:
    with pytest.raises(AttemptError) as caught:
        parse_response(value, 0.0, 1, **kwargs)
    return caught.value


def read(value: Any) -> Response:
    return parse_response(value, 0.0, 1)


@pytest.mark.parametrize(
    ("content", "text", "reasoning"),
    [
        ("late", "late", None),
        (None, "", None),
        ([], "", None),
        (["la", "te"], "late", None),
        ({"type": "text", "text": "late"}, "late", None),
        ([{"type": "output_text", "text": "late", "annotations": []}], "late", None),
        ([{"type": "text", "text": {"value": "late"}}], "late", None),
        ([{"text": "late"}, {"type": "image_url", "image_url": {"url": "data:"}}], "late", None),
        ([{"type": "thinking", "thinking": "why"}, {"type": "text", "text": "late"}], "late", "why"),
        (
            [{"type": "thinking", "thinking": [{"type": "text", "text": "why"}]}, {"type": "text", "text": "late"}],
            "late",
            "why",
        ),
        ([{"type": "reasoning", "summary": [{"type": "summary_text", "text": "why"}]}, "late"], "late", "why"),
        ([{"type": "redacted_thinking", "data": "x"}, {"type": "text", "text": "late"}], "late", None),
        ("a lone \ud83d surrogate", "a lone ? surrogate", None),
    ],
)
def test_a_content_is_read_in_all_forms(content: Any, text: str, reasoning: str | None) -> None:
    found = read(body(content))
    assert (found.text, found.reasoning) == (text, reasoning)


@pytest.mark.parametrize(
    ("fields", "reasoning"),
    [
        ({"reasoning_content": "why"}, "why"),
        ({"reasoning": "why"}, "why"),
        ({"thinking": "why"}, "why"),
        ({"reasoning_details": [{"type": "reasoning.text", "text": "why"}]}, "why"),
        ({"reasoning_content": ["w", {"text": "hy"}]}, "why"),
        ({"reasoning": {"effort": 3}}, None),
        ({"reasoning_content": 7}, None),
    ],
)
def test_reasoning_is_read_in_all_forms(fields: dict[str, Any], reasoning: str | None) -> None:
    assert read(body(**fields)).reasoning == reasoning


CALL = {"name": "find", "arguments": '{"n": 4}'}


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": [{"id": "c", "type": "function", "function": CALL}]},
        {"tool_calls": [{"function": {"name": "find", "arguments": {"n": 4}}}]},
        {"tool_calls": [{"name": "find", "arguments": {"n": 4}}]},
        {"tool_calls": {"function": CALL}},
        {"tool_calls": None, "function_call": CALL},
        {"tool_calls": [], "function_call": {"name": "find", "arguments": {"n": 4}}},
        {"content": [{"type": "tool_use", "id": "c", "name": "find", "input": {"n": 4}}]},
    ],
)
def test_tool_calls_are_read_in_all_forms(fields: dict[str, Any]) -> None:
    found = read(body(**({"content": None} | fields), finish="tool_calls"))
    assert found.tool_calls == [CALL]


@pytest.mark.parametrize(
    ("call", "read_as"),
    [
        ({"function": {"name": "find"}}, {"name": "find", "arguments": "{}"}),
        ({"function": {"name": "find", "arguments": ""}}, {"name": "find", "arguments": "{}"}),
        ({"function": {"name": "find", "arguments": [1]}}, {"name": "find", "arguments": "[1]"}),
        ({"function": {"name": 3, "arguments": {}}}, {"name": None, "arguments": "{}"}),
        ("find", {"name": None, "arguments": "{}"}),
    ],
)
def test_a_malformed_tool_call_is_kept_for_the_kind_to_report(call: Any, read_as: dict[str, Any]) -> None:
    assert read(body(None, tool_calls=[call])).tool_calls == [read_as]


@pytest.mark.parametrize(
    "fields",
    [
        {"refusal": "I cannot.", "content": None},
        {"content": [{"type": "refusal", "refusal": "I cannot."}]},
        {"content": None, "provider_specific_fields": {"refusal": "I cannot."}},
    ],
)
def test_a_refusal_is_read(fields: dict[str, Any]) -> None:
    found = read(body(**fields))
    assert (found.text, found.finish_reason) == ("I cannot.", "refusal")


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        (USAGE, (20, 5)),
        ({"prompt_tokens": "20", "completion_tokens": 5.0}, (20, 5)),
        ({"input_tokens": 20, "output_tokens": 5}, (20, 5)),
        ({"prompt_tokens": 20, "total_tokens": 25}, (20, 5)),
        ({"prompt_tokens": 20, "completion_tokens": None, "total_tokens": 0}, (20, None)),
        ({"prompt_tokens": 2**70, "completion_tokens": -3}, (None, None)),
        ({"prompt_tokens": True, "completion_tokens": math.nan}, (None, None)),
        ({"prompt_tokens": [20], "completion_tokens": {}}, (None, None)),
        ([20, 5], (None, None)),
        (None, (None, None)),
    ],
)
def test_only_a_believable_number_is_a_token_count(usage: Any, counts: tuple[int | None, int | None]) -> None:
    found = read(body(usage=usage))
    assert (found.prompt_tokens, found.completion_tokens) == counts


def test_a_count_written_with_thousands_of_digits_is_none() -> None:
    assert read_count("9" * 6000) is None


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (body(7), "message.content is a number"),
        (body(True), "message.content is a boolean"),
        (body({"label": "late"}), "message.content is an object without a text"),
        (body([1, None]), "message.content is a list without a text"),
        (body([{"type": "image_url", "image_url": "x"}]), "message.content is a list without a text"),
        ({"choices": [{"finish_reason": "stop"}], "usage": USAGE}, "neither a message nor a text"),
        ({"choices": [{"finish_reason": "stop", "message": "late"}], "usage": USAGE}, "neither a message nor a text"),
        ({"choices": [], "usage": USAGE}, "`choices` is empty"),
        ({"choices": [None], "usage": USAGE}, "the first choice is null"),
        ({"choices": "late", "usage": USAGE}, "`choices` is a text"),
        ({"usage": USAGE}, "`choices` is missing"),
    ],
)
def test_an_unreadable_body_says_what_it_contains(value: dict[str, Any], says: str) -> None:
    error = fail(value)
    assert says in str(error)
    assert error.maybe_billed
    assert not error.retry, "its tokens are counted, so it was paid for"
    assert error.answer is not None
    assert json.loads(error.answer.text) == value
    assert (error.answer.prompt_tokens, error.answer.completion_tokens) == (20, 5)


@pytest.mark.parametrize("value", [{}, [], None, 3, "late", {"choices": None}])
def test_a_body_with_nothing_in_it_is_asked_for_again(value: Any) -> None:
    error = fail(value)
    assert "contains no answer" in str(error)
    assert error.retry
    assert error.maybe_billed


def test_a_body_that_is_nested_too_deeply_costs_only_itself() -> None:
    deep: Any = "x"
    for _ in range(900):
        deep = [deep]
    assert "message.content" in str(fail(body(deep)))
    assert read(body(None, tool_calls=[{"function": {"name": "f", "arguments": {"a": deep}}}])).tool_calls


@pytest.mark.parametrize("error", [{}, {"message": "", "code": None}, {"code": 0, "message": "success"}, None, ""])
def test_an_empty_error_is_no_error(error: Any) -> None:
    assert read(body() | {"error": error}).text == "late"


def test_an_error_next_to_an_answer_counts() -> None:
    value = body("half of a", finish="error")
    value["choices"][0]["error"] = {"code": 502, "message": "upstream broke"}
    error = fail(value)
    assert "upstream broke" in str(error)
    assert (error.retry, error.maybe_billed) == (True, True)


def test_a_content_filter_in_a_body_filters_the_prompt() -> None:
    with pytest.raises(ContentFilterError, match="flagged"):
        read({"choices": [], "error": {"code": "content_filter", "message": "flagged"}})


def entry(token: Any, logprob: Any, tops: Any) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "top_logprobs": tops}


A, B = {"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -1.5}


@pytest.mark.parametrize(
    ("entries", "positions"),
    [
        ([entry("a", -0.5, [A, B])], [[("a", -0.5), ("b", -1.5)]]),
        ([entry("a", "-0.5", [A, {"token": "b", "logprob": None}])], [[("a", -0.5)]]),
        ([entry("a", None, [A, B])], [[("a", -0.5), ("b", -1.5)]]),
        ([entry("a", None, [B])], []),
        ([entry("a", None, None)], []),
        ([entry("a", 0.0, None)], []),
        ([entry("a", math.nan, [{"token": "a", "logprob": math.nan}])], []),
        ([entry("a", -math.inf, [B])], []),
        ([entry(None, -0.5, [A, B])], []),
        ([entry("a", -0.5, [A, B]), entry("c", None, None)], [[("a", -0.5), ("b", -1.5)], [("c", UNKNOWN_LOGPROB)]]),
        ([entry("a", -0.5, [A, 3, None, {"logprob": -1}])], [[("a", -0.5)]]),
        ([entry("a", 0.001, [{"token": "a", "logprob": 0.001}])], [[("a", 0.0)]]),
        ("late", []),
        ([None], []),
    ],
)
def test_a_token_without_a_log_probability_is_left_out(entries: Any, positions: list[Any]) -> None:
    assert read_positions({"content": entries}) == positions


@pytest.mark.parametrize(
    "logprobs",
    [
        {"content": [entry("a", -0.5, {"a": -0.5, "b": -1.5})]},
        [entry("a", -0.5, [A, B])],
        {"content": None, "tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -1.5}]},
        {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [[A, B]]},
    ],
)
def test_log_probabilities_are_read_in_all_forms(logprobs: Any) -> None:
    assert read_positions(logprobs) == [[("a", -0.5), ("b", -1.5)]]


@pytest.mark.parametrize(
    ("tokens", "values", "tops", "positions"),
    [
        (["a"], [-0.5], [{"a": -0.5, "b": -1.5}], [[("a", -0.5), ("b", -1.5)]]),
        (["a"], [None], [{"a": -0.5, "b": -1.5}], [[("a", -0.5), ("b", -1.5)]]),
        (["a"], [None], [None], []),
        (["a"], [-0.5], [None], []),
        (["a"], None, None, []),
        ("a", [-0.5], {}, []),
    ],
)
def test_log_probabilities_of_the_text_api(tokens: Any, values: Any, tops: Any, positions: list[Any]) -> None:
    assert read_positions({"tokens": tokens, "token_logprobs": values, "top_logprobs": tops}) == positions


def test_an_answer_with_unusable_log_probabilities_is_none_if_they_were_asked_for() -> None:
    value = body()
    value["choices"][0]["logprobs"] = {"content": [entry("late", None, None)]}
    assert read(value).positions == []
    assert "log-probabilities" in str(fail(value, logprobs=True))


def test_a_form_that_the_readers_do_not_know_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "read_tool_calls", lambda message: message["no such thing"])
    error = fail(body())
    assert "not known yet: KeyError('no such thing')" in str(error)
    assert error.answer is not None
    assert "late" in error.answer.text


@settings(max_examples=2000, deadline=None)
@given(body=make_odd_bodies(CHAT) | make_odd_bodies(TEXT), logprobs=st.booleans())
def test_any_body_is_read_or_reported(body: Any, logprobs: bool) -> None:
    response: Response | None
    try:
        response = parse_response(body, 0.0, 1, logprobs=logprobs)
    except ContentFilterError:
        return
    except AttemptError as error:
        assert READER_FAILED not in str(error)  # noqa: PT017
        response = error.answer
    assert response is not None
    assert json.dumps(asdict(response), ensure_ascii=False, allow_nan=False).encode(), "it can be stored"
    assert all(logprob <= 0 for position in response.positions for _, logprob in position)
    assert {type(count) for count in (response.prompt_tokens, response.completion_tokens)} <= {int, type(None)}
    for call in response.tool_calls or []:
        assert isinstance(call["arguments"], str)


def test_a_text_next_to_an_empty_message_is_read() -> None:
    choice = {"message": {"role": "assistant", "content": None}, "text": "late", "finish_reason": "stop"}
    assert read({"choices": [choice]}).text == "late"


@pytest.mark.parametrize("name", ["finish_reason", "finishReason", "stop_reason", "finish_details"])
def test_a_finish_reason_is_read_under_all_names(name: str) -> None:
    value = {"type": "max_tokens"} if name == "finish_details" else "max_tokens"
    choice = {"message": {"content": "la"}, "finish_reason": None} | {name: value}
    assert read({"choices": [choice]}).finish_reason == "length"


def test_a_body_without_an_answer_is_kept_without_secrets() -> None:
    address = "https://me:pw-planted-a1b2@host/v1?token=tok-planted-c3d4"
    with pytest.raises(AttemptError) as caught:
        parse_response({"error": {"message": f"refused; see {address}"}, "choices": []}, 0.0, 1)
    answer = caught.value.answer
    assert answer is not None
    assert "refused; see https://***@host" in answer.text
    assert "planted" not in answer.text
