"""How long a provider asks to wait, in the forms in which providers and gateways say it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from distill_dagster.teacher.providers.attempts import AttemptError, classify_status
from distill_dagster.teacher.providers.retry_after import LONGEST_WAIT_S, parse_wait, read_wait

HOUR = 3600
NO_TIMES: list[Any] = ["soon", "", "nan", "inf", None, True, [], {}, "5 parsecs", "1 month"]


def in_an_hour() -> datetime:
    return datetime.now(UTC) + timedelta(hours=1)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("1.5", 1.5),
        (" 20 ", 20),
        (3600, HOUR),
        ("0", 0),
        ("-5", 0),
        ("1h0m0s", HOUR),
        ("7m12s", 432),
        ("6m0s", 360),
        ("250ms", 0.25),
        ("35s", 35),
        ("1 day", 86_400),
        ("2 hours and 5 minutes", 7500),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
        ("1e300", LONGEST_WAIT_S),
        *[(value, None) for value in NO_TIMES],
    ],
)
def test_a_wait_in_seconds_or_words(value: Any, seconds: float | None) -> None:
    assert parse_wait(value) == (None if seconds is None else pytest.approx(seconds))


def test_a_wait_as_a_point_in_time() -> None:
    then = in_an_hour()
    for value in (
        format_datetime(then, usegmt=True),
        then.isoformat(),
        then.isoformat().replace("+00:00", "Z"),
        str(int(then.timestamp())),
        str(int(1000 * then.timestamp())),
    ):
        assert parse_wait(value) == pytest.approx(HOUR, abs=60), value


def test_the_header_counts_more_than_the_body() -> None:
    body = json.dumps({"error": {"details": [{"retryDelay": "50s"}]}})
    assert read_wait({"Retry-After": "7"}, body) == 7
    assert read_wait({"retry-after-ms": "1500", "retry-after": "9"}, body) == 1.5
    assert read_wait({"RETRY-AFTER": "soon"}, body) == 50
    assert read_wait(None, "[" * 100_000) is None


def test_google_says_it_in_the_details_of_the_error() -> None:
    info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "41.7s"}
    error = {"code": 429, "status": "RESOURCE_EXHAUSTED", "message": "Quota exceeded.", "details": [{"x": 1}, info]}
    assert read_wait({}, json.dumps([{"error": error}])) == pytest.approx(41.7)


def test_the_reset_of_a_limit_counts_if_the_limit_is_used_up() -> None:
    openai = {
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1h0m0s",
        "x-ratelimit-remaining-tokens": "900",
        "x-ratelimit-reset-tokens": "24h0m0s",
    }
    assert read_wait(openai) == HOUR
    assert read_wait(openai | {"x-ratelimit-remaining-requests": "5"}) is None
    anthropic = {
        "anthropic-ratelimit-input-tokens-remaining": "0",
        "anthropic-ratelimit-input-tokens-reset": in_an_hour().isoformat(),
    }
    assert read_wait(anthropic) == pytest.approx(HOUR, abs=60)
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(int(1000 * in_an_hour().timestamp()))}
    body = {"error": {"message": "free-models-per-day", "code": 429, "metadata": {"headers": headers}}}
    assert read_wait({}, json.dumps(body)) == pytest.approx(HOUR, abs=60), "OpenRouter"
    assert read_wait({}, json.dumps(body), is_overload=False) is None


@pytest.mark.parametrize(
    ("message", "seconds"),
    [
        ("Rate limit reached on requests per day. Please try again in 1h0m0s. Visit …", HOUR),
        ("Please try again in 7.66s.", 7.66),
        ("Please retry after 43 seconds.", 43),
        ("Too many requests, retry in 2 minutes", 120),
        ("Try again later, in a while", None),
    ],
)
def test_the_words_of_a_refusal_for_overload(message: str, seconds: float | None) -> None:
    body = json.dumps({"error": {"message": message, "code": "rate_limit_exceeded"}})
    failure = classify_status(429, body)
    assert isinstance(failure, AttemptError)
    assert failure.wait_s == (None if seconds is None else pytest.approx(seconds))
    refused = classify_status(400, body)
    assert isinstance(refused, AttemptError)
    assert refused.wait_s is None, "a message about anything else may repeat the prompt"
