"""Errors of providers: codes and types decide, and never words of the prompt that a message repeats."""

from __future__ import annotations

import json
from typing import Any

import pytest

from distill_dagster.teacher.providers.attempts import AttemptError, ContentFilterError, classify_status
from distill_dagster.teacher.providers.error_bodies import parse_error_body
from distill_dagster.teacher.providers.responses import parse_response


def classify(status: int, body: Any) -> AttemptError | ContentFilterError:
    return classify_status(status, body if isinstance(body, str) else json.dumps(body))


def classify_ok(body: dict[str, Any]) -> AttemptError | ContentFilterError:
    """What an error in a response with HTTP 200 means."""
    with pytest.raises((AttemptError, ContentFilterError)) as caught:
        parse_response(body, 0.0, 1)
    assert isinstance(caught.value, AttemptError | ContentFilterError)
    return caught.value


ECHOED = [
    "value is not a list: 'insufficient_quota, says my bank'",
    "your credit balance is too low",
    "billing_hard_limit_reached",
    "why does content_filter stop me?",
    "content_policy_violation invalid_request_error",
    'got {"error": {"code": "insufficient_quota"}}',
    "rate limit exceeded",
]


@pytest.mark.parametrize("words", ECHOED)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_words_of_the_prompt_decide_nothing(words: str, status: int) -> None:
    for body in ({"error": {"message": words, "type": "BadRequestError", "code": status}}, {"detail": words}, words):
        error = classify(status, body)
        assert isinstance(error, AttemptError)
        assert not error.permanent
        assert not error.overload
        assert words[:20] in str(error)


@pytest.mark.parametrize(
    "error",
    [
        {"code": "content_filter", "message": "no"},
        {"code": "content_policy_violation", "type": "invalid_request_error", "message": "no"},
        {"code": 400, "innererror": {"code": "ResponsibleAIPolicyViolation"}, "message": "no"},
        {"code": 403, "message": "flagged", "metadata": {"reasons": ["violence"], "flagged_input": "hit"}},
        {"code": "data_inspection_failed", "message": "no"},
        {"type": "invalid_request_error", "message": "Output blocked by content filtering policy"},
    ],
)
def test_a_content_filter_is_known_by_its_code(error: dict[str, Any]) -> None:
    assert isinstance(classify(400, {"error": error}), ContentFilterError)
    assert isinstance(classify_ok({"choices": None, "error": error}), ContentFilterError)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (429, {"code": "insufficient_quota", "type": "insufficient_quota", "message": "q"}),
        (403, {"type": "exceeded_current_quota_error", "message": "q"}),
        (402, {"message": "q"}),
        (401, {"message": "q"}),
        (
            400,
            {
                "type": "invalid_request_error",
                "message": "Your credit balance is too low to access the Anthropic API. Go to Billing.",
            },
        ),
    ],
)
def test_an_empty_account_is_known_by_code_or_status(status: int, error: dict[str, Any]) -> None:
    found = classify(status, {"error": error})
    assert isinstance(found, AttemptError)
    assert found.permanent
    assert not found.retry


@pytest.mark.parametrize(
    ("error", "retry", "overload", "permanent"),
    [
        ({"code": 429, "message": "slow down"}, True, True, False),
        ({"code": "429", "message": "slow down"}, True, True, False),
        ({"code": "rate_limit_exceeded", "message": "slow down"}, True, True, False),
        ({"type": "overloaded_error", "message": "slow down"}, True, True, False),
        ({"status": "RESOURCE_EXHAUSTED", "message": "slow down"}, True, True, False),
        ({"code": 502, "message": "slow down"}, True, False, False),
        ({"type": "server_error", "message": "slow down"}, True, False, False),
        ({"message": "slow down"}, True, False, False),
        ({"code": 400, "message": "slow down"}, False, False, False),
        ({"type": "invalid_request_error", "message": "slow down"}, False, False, False),
        ({"code": 402, "message": "slow down"}, False, False, True),
        ({"code": "insufficient_quota", "message": "slow down"}, False, False, True),
        ("slow down", True, False, False),
    ],
)
def test_an_error_with_http_200_means_what_its_code_says(
    error: Any, retry: bool, overload: bool, permanent: bool
) -> None:
    for body in ({"choices": None, "error": error}, {"choices": [], "error": error}, {"error": error}):
        found = classify_ok(body)
        assert isinstance(found, AttemptError)
        assert (found.retry, found.overload, found.permanent) == (retry, overload, permanent)
        assert "slow down" in str(found)
        assert not found.maybe_billed
        assert found.answer is not None
        assert json.loads(found.answer.text) == body


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "why"}}, "why"),
        ({"error": "why"}, "why"),
        ({"errors": [{"code": 7, "message": "why"}]}, "why"),
        ({"message": "why", "code": 5}, "why"),
        ({"detail": "why"}, "why"),
        ({"detail": [{"loc": ["body"], "msg": "why"}]}, '[{"loc": ["body"], "msg": "why"}]'),
        ({"base_resp": {"status_code": 1008, "status_msg": "why"}}, "why"),
        ([{"error": {"status": "X", "message": "why"}}], "why"),
        ({"error": {"message": "why", "metadata": {"raw": "upstream\nsays no"}}}, "why (upstream says no)"),
        ({"error": {"code": "a_code"}}, "a_code"),
        ("<html>  why </html>", "<html> why </html>"),
        ("", "no text"),
        ("[" * 5000, "[" * 400),
    ],
)
def test_the_message_is_found_in_all_forms(body: Any, message: str) -> None:
    assert parse_error_body(body if isinstance(body, str) else json.dumps(body)).message == message
