"""The ways in which one attempt at a request can fail, and what each means for retries and for the bill."""

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
    """No request to this teacher can succeed (key refused, model unknown). No further request is sent."""


class BudgetError(TeacherError):
    """A budget cap is reached. Nothing more is sent; stored answers are kept."""


class AttemptError(Exception):
    """One attempt without an answer.

    Attributes:
        retry: the request may be sent again.
        overload: the teacher is overloaded; send fewer requests at the same time.
        maybe_billed: the teacher may have worked, and bill the request, although no answer came.
        permanent: no request to this teacher can succeed.
        wait_s: seconds to wait before the next attempt, if the teacher says so.
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
    """The content filter of the provider rejected the prompt. Asking again would not help."""


def classify_status(status: int, body: str, retry_after: str | None = None) -> AttemptError | ContentFilterError:
    """Return the error that an HTTP status other than 200 means."""
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
    """Read the message from the body of an error, whose form depends on the provider."""
    try:
        value = json.loads(body)
    except ValueError:
        return " ".join(body.split())[:400] or "no text"
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or error)[:400]


def parse_retry_after(retry_after: str | None) -> float | None:
    """Read the seconds from a Retry-After header: a number or a date (RFC 9110, 10.2.3). None if it is unreadable."""
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
