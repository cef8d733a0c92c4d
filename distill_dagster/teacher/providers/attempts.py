"""What may become of one attempt at a request, and what that means for the next one and for the bill."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from time import time

from distill_dagster.core.errors import TeacherError

OVERLOAD = {429, 503, 529}
RETRIED = OVERLOAD | {408, 409, 500, 502, 504}
MAYBE_BILLED = {408, 504}
PERMANENT = {401, 402, 404}
OUT_OF_CREDIT = ("insufficient_quota", "billing_hard_limit_reached", "credit balance is too low")
FILTERED = ("content_filter", "content_policy_violation")


class PermanentTeacherError(TeacherError):
    """No request to this teacher can succeed (key refused, model unknown): the others are not sent."""


class BudgetError(TeacherError):
    """A cap is reached: nothing more is sent, what was answered stays."""


class AttemptError(Exception):
    """One attempt that brought no answer.

    `retry` tells whether the same may be sent again, `overload` that the teacher wants less at a time, `wait_s` how
    long it asks to wait, `maybe_billed` that the teacher may have worked, and been paid, although nothing came.
    """

    def __init__(
        self,
        message: str,
        *,
        retry: bool = False,
        overload: bool = False,
        maybe_billed: bool = False,
        permanent: bool = False,
        wait_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.retry, self.overload, self.maybe_billed = retry, overload, maybe_billed
        self.permanent, self.wait_s = permanent, wait_s


class FilteredError(Exception):
    """The provider will not answer this prompt: its content filter stopped it."""


def of_status(status: int, body: str, retry_after: str | None = None) -> AttemptError | FilteredError:
    """What an HTTP status other than 200 means."""
    message = f"HTTP {status}: {_said(body)}"
    lowered = body.casefold()
    if status == 400 and any(word in lowered for word in FILTERED):
        return FilteredError(message)
    permanent = status in PERMANENT or any(word in lowered for word in OUT_OF_CREDIT)
    return AttemptError(
        message,
        retry=status in RETRIED and not permanent,
        overload=status in OVERLOAD and not permanent,
        maybe_billed=status in MAYBE_BILLED,
        permanent=permanent,
        wait_s=seconds_to_wait(retry_after),
    )


def _said(body: str) -> str:
    """The message of an error's body, however the provider wraps it."""
    try:
        value = json.loads(body)
    except ValueError:
        return " ".join(body.split())[:400] or "no text"
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)[:400]


def seconds_to_wait(retry_after: str | None) -> float | None:
    """The seconds of a Retry-After header: a number, or a date (RFC 9110, 10.2.3)."""
    if not retry_after:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time())
    except (TypeError, ValueError):
        return None
