"""Finish reasons: a whole answer, a cut one, a filtered one, and everything else, which is no answer."""

from __future__ import annotations

from typing import Any

import pytest

from distill_dagster.teacher.providers.attempts import AttemptError
from distill_dagster.teacher.providers.finish_reasons import (
    BROKEN_OFF,
    FINISH_REASONS,
    find_finish_reason,
    normalize_finish_reason,
)
from distill_dagster.teacher.providers.responses import parse_response

MEANINGS = {"stop", "tool_calls", "length", "content_filter", "refusal", BROKEN_OFF}


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("stop", "stop"),
        ("STOP", "stop"),
        ("end_turn", "stop"),
        ("eos_token", "stop"),
        ("COMPLETE", "stop"),
        ("FinishReason.STOP", "stop"),
        ({"type": "stop", "matched": 2}, "stop"),
        ("tool_calls", "tool_calls"),
        ("function_call", "tool_calls"),
        ("length", "length"),
        ("MAX_TOKENS", "length"),
        ("model_length", "length"),
        ("model_context_window_exceeded", "length"),
        ("content_filter", "content_filter"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("sensitive", "content_filter"),
        ("guardrail_intervened", "content_filter"),
        ("refusal", "refusal"),
        ("error", BROKEN_OFF),
        ("network_error", BROKEN_OFF),
        ("insufficient_system_resource", BROKEN_OFF),
        ("abort", BROKEN_OFF),
        ("MALFORMED_FUNCTION_CALL", BROKEN_OFF),
        ("null", BROKEN_OFF),
        ("a word of tomorrow", BROKEN_OFF),
        ("", BROKEN_OFF),
        (None, BROKEN_OFF),
        (3, BROKEN_OFF),
        ([], BROKEN_OFF),
        ({}, BROKEN_OFF),
    ],
)
def test_every_reason_has_one_meaning(word: Any, meaning: str) -> None:
    assert normalize_finish_reason(word) == meaning


def test_the_table_has_only_known_meanings() -> None:
    assert set(FINISH_REASONS.values()) == MEANINGS
    assert all(word == word.casefold() for word in FINISH_REASONS)


@pytest.mark.parametrize(("word", "again"), [("network_error", True), ("MALFORMED_RESPONSE", False), (None, False)])
def test_a_broken_off_answer_is_no_answer(word: str | None, again: bool) -> None:
    choice = {"finish_reason": word, "message": {"content": "We are very sor"}}
    with pytest.raises(AttemptError, match=r"broken off|no finish_reason") as caught:
        parse_response({"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}, 0.0, 1)
    assert caught.value.retry is again
    assert caught.value.answer is not None
    assert "We are very sor" in caught.value.answer.text


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"choices": [{"finish_reason": "abort"}]}, "abort"),
        ({"candidates": [{"finishReason": "OTHER"}]}, "other"),
        ({"stop_reason": "pause_turn"}, "pause_turn"),
        ({"stopReason": "guardrail_intervened"}, "guardrail_intervened"),
        ({"done_reason": "load"}, "load"),
        ({"choices": [{"finish_reason": None}]}, None),
        ({"choices": []}, None),
        ({"output": {}}, None),
        (None, None),
    ],
)
def test_the_word_of_a_provider_is_found_in_its_own_body(body: Any, word: str | None) -> None:
    assert find_finish_reason(body) == word
