"""What may become of one attempt at a request, and what that means for the next one and for the bill."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from time import time

from distill_dagster.core.errors import TeacherError

OVERLOAD_STATUSES = {429, 503, 529}
RETRIED_STATUSES = OVERLOAD_STATUSES | {408, 409, 500, 502, 504}
MAYBE_BILLED_STATUSES = {408, 504}
PERMANENT_STATUSES = {401, 402, 404}
OUT_OF_CREDIT_MESSAGES = ("insufficient_quota", "billing_hard_limit_reached", "credit balance is too low")
CONTENT_FILTER_CODES = ("content_filter", "content_policy_violation")


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


class ContentFilterError(Exception):
    """The provider will not answer this prompt: its content filter stopped it."""


def classify_status(status: int, body: str, retry_after: str | None = None) -> AttemptError | ContentFilterError:
    """What an HTTP status other than 200 means."""
    message = f"HTTP {status}: {_read_error_message(body)}"
    lowered = body.casefold()
    if status == 400 and any(word in lowered for word in CONTENT_FILTER_CODES):
        return ContentFilterError(message)
    permanent = status in PERMANENT_STATUSES or any(word in lowered for word in OUT_OF_CREDIT_MESSAGES)
    return AttemptError(
        message,
        retry=status in RETRIED_STATUSES and not permanent,
        overload=status in OVERLOAD_STATUSES and not permanent,
        maybe_billed=status in MAYBE_BILLED_STATUSES,
        permanent=permanent,
        wait_s=parse_retry_after(retry_after),
    )


def _read_error_message(body: str) -> str:
    """The message of an error's body, however the provider wraps it."""
    try:
        value = json.loads(body)
    except ValueError:
        return " ".join(body.split())[:400] or "no text"
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)[:400]


def parse_retry_after(retry_after: str | None) -> float | None:
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
