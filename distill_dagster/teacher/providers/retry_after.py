"""How long a provider asks to wait: read from the headers and the body of a refusal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from distill_dagster.teacher.providers.body_parts import read_number

LONGEST_WAIT_S = 366 * 86_400.0
"""Longer waits count as a year, so that every time can be written as a date."""
_EPOCH_SECONDS, _EPOCH_MILLISECONDS = 1e9, 1e12
"""From these values on, a number is a point in time: some gateways send it in place of a duration."""
_UNIT = r"(ms|milliseconds?|d|days?|h|hours?|hrs?|m|min|mins|minutes?|s|sec|secs|seconds?)"
_PART = re.compile(rf"(\d+(?:\.\d+)?)\s*{_UNIT}(?![a-z])", re.IGNORECASE)
_DURATION = re.compile(rf"(?:\d+(?:\.\d+)?\s*{_UNIT}(?![a-z])[\s,]*(?:and\s+)?)+", re.IGNORECASE)
_WORDS = re.compile(rf"\b(?:try again|retry)\s+(?:in|after)\s+({_DURATION.pattern})", re.IGNORECASE)
_SECONDS = {"ms": 0.001, "d": 86_400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_MAX_DEPTH = 6


def read_wait(headers: Mapping[str, str] | None, body: str = "", *, is_overload: bool = True) -> float | None:
    """The seconds that the provider asks to wait, or None if it does not say.

    `Retry-After` comes first. If it is missing and the refusal is for overload, Google's `retryDelay` counts, and then
    the reset times of limits that are used up (OpenAI, Anthropic, OpenRouter).

    Args:
        headers: of the response, in any case of letters.
        body: of the response.
        is_overload: whether the status says that the limit of requests or tokens is reached.
    """
    values = {name.lower(): value for name, value in (headers or {}).items()}
    if (milliseconds := _read_seconds(values.get("retry-after-ms"))) is not None:
        return milliseconds / 1000
    if (seconds := parse_wait(values.get("retry-after"))) is not None or not is_overload:
        return seconds
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    for delay in _find_values(fields, "retryDelay", "retry_after"):
        if (seconds := parse_wait(delay)) is not None:
            return seconds
    for more in _find_values(fields, "headers"):  # OpenRouter repeats the provider's headers in the body
        if isinstance(more, dict):
            values |= {str(name).lower(): str(value) for name, value in more.items()}
    resets = (_read_reset(name, value, values) for name, value in values.items())
    return max((wait for wait in resets if wait is not None), default=None)


def find_wait_in_words(message: str) -> float | None:
    """Find the seconds to wait in the message of a refusal for overload: "Please try again in 1h0m0s."."""
    found = _WORDS.search(message)
    return _parse_duration(found.group(1)) if found else None


def parse_wait(value: Any) -> float | None:
    """Read a wait: seconds, a point in time (epoch, RFC 9110 or ISO 8601), or a duration such as 1h0m0s."""
    if (seconds := _read_seconds(value)) is not None:
        return seconds
    if not isinstance(value, str):
        return None
    text = value.strip()
    if _DURATION.fullmatch(text):
        return _parse_duration(text)
    for parse in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            then = parse(text)
            return _limit((then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp() - time())
        except (TypeError, ValueError, OverflowError, IndexError):
            continue
    return None


def _read_seconds(value: Any) -> float | None:
    number = read_number(value)
    if number is None:
        return None
    if number >= _EPOCH_MILLISECONDS:
        number = number / 1000 - time()
    elif number >= _EPOCH_SECONDS:
        number -= time()
    return _limit(number)


def _parse_duration(text: str) -> float:
    parts = ((float(number), unit.lower()) for number, unit in _PART.findall(text))
    return _limit(sum(n * _SECONDS["ms" if unit.startswith(("ms", "milli")) else unit[0]] for n, unit in parts))


def _limit(seconds: float) -> float:
    return min(max(0.0, seconds), LONGEST_WAIT_S)


def _read_reset(name: str, value: str, headers: Mapping[str, str]) -> float | None:
    """The wait of a header such as x-ratelimit-reset-requests, if the limit that it belongs to is used up."""
    if "ratelimit" not in name or "reset" not in name.split("-"):
        return None
    remaining = "-".join("remaining" if part == "reset" else part for part in name.split("-"))
    return parse_wait(value) if _read_seconds(headers.get(remaining)) == 0 else None


def _find_values(value: Any, *names: str, depth: int = 0) -> Iterator[Any]:
    """The values of fields with one of these names, at any depth of a JSON value."""
    if depth > _MAX_DEPTH:
        return
    if isinstance(value, dict):
        yield from (value[name] for name in names if name in value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in inner:
        yield from _find_values(part, *names, depth=depth + 1)
