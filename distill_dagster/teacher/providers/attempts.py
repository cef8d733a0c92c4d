"""The ways in which one attempt at a request can fail, and what each means for retries and for the bill."""

from __future__ import annotations

from collections.abc import Mapping
from time import time

from distill_dagster.core.errors import TeacherError
from distill_dagster.core.formatting import format_seconds, format_time
from distill_dagster.teacher.providers.error_bodies import ProviderError, parse_error_body
from distill_dagster.teacher.providers.exchange import Response
from distill_dagster.teacher.providers.retry_after import find_wait_in_words, read_wait

OVERLOAD_STATUSES = {429, 503, 529}
RETRIED_STATUSES = {408, 409, 425, 429}
"""These and all from 500 on, except `HOPELESS_STATUSES`. Gateways have their own, such as Cloudflare's 520 to 530."""
HOPELESS_STATUSES = {501, 505, 511}
"""Not implemented, HTTP version not supported, network login required: the same request fails again."""
MAYBE_BILLED_STATUSES = {408, 504, 520, 524, 598}
"""The teacher had the request when the time was over or the connection broke, so it may have answered and billed it."""
PERMANENT_STATUSES = {401, 402, 404}
OUT_OF_CREDIT_CODES = {
    # OpenAI, DeepSeek, Moonshot, DashScope, Zhipu
    *("insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "insufficient_balance"),
    *("insufficient_credits", "exceeded_current_quota_error", "arrearage", "1113"),
}
OUT_OF_CREDIT_MESSAGE = "Your credit balance is too low to access the Anthropic API"
CONTENT_FILTER_MESSAGE = "Output blocked by content filtering policy"
"""Anthropic has no codes for these two. Messages that only contain them do not count: they may repeat the prompt."""
CONTENT_FILTER_CODES = {
    # OpenAI and Azure, OpenRouter (named by `error_bodies`), DashScope, Zhipu
    *("content_filter", "content_policy_violation", "invalid_prompt", "responsibleaipolicyviolation", "moderation"),
    *("data_inspection_failed", "datainspectionfailed", "1301"),
}


class PermanentTeacherError(TeacherError):
    """No request to this teacher can succeed (key refused, model unknown). No further request is sent."""


class BudgetError(TeacherError):
    """A budget cap is reached. Nothing more is sent; stored answers are kept."""


class PendingError(TeacherError):
    """Answers cannot come yet. This is no failure: stored answers are kept, and a later run continues."""


class TeacherPausedError(PendingError):
    """The teacher asks for a pause that no request waits for, for example until its daily limit is reset.

    Attributes:
        until: when the pause ends, in seconds since the epoch.
        reason: the provider's words.
    """

    def __init__(self, model: str, wait_s: float, reason: str) -> None:
        self.until, self.reason = time() + wait_s, reason
        super().__init__(
            f"{model} asks to wait until {format_time(self.until)} ({format_seconds(wait_s)}), so nothing more is "
            f"sent: {reason} Stored answers are kept. Run again after that time; `distill refresh` waits for it."
        )

    @property
    def is_over(self) -> bool:
        """Whether the teacher may be asked again."""
        return time() >= self.until


class UnusableAnswerError(TeacherError):
    """What came instead of an answer cannot be used. `answer` has it as text, with the tokens that were used."""

    def __init__(self, message: str, answer: Response) -> None:
        super().__init__(message)
        self.answer = answer


class AttemptError(Exception):
    """One attempt without an answer.

    Attributes:
        retry: the request may be sent again.
        overload: the teacher is overloaded; send fewer requests at the same time.
        maybe_billed: the teacher may have worked, and bill the request, although no answer came.
        permanent: no request to this teacher can succeed.
        wait_s: seconds to wait before the next attempt, if the teacher says so.
        answer: what came instead of an answer: the body as text, and the tokens that were used.
    """

    answer: Response | None = None

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


def classify_status(
    status: int, body: str, headers: Mapping[str, str] | None = None
) -> AttemptError | ContentFilterError:
    """Return the error that an HTTP status other than 200 means."""
    wait_s = read_wait(headers, body, is_overload=status in OVERLOAD_STATUSES)
    return classify_error(status, parse_error_body(body), wait_s)


def classify_error(status: int, error: ProviderError, wait_s: float | None = None) -> AttemptError | ContentFilterError:
    """Return what an error means. If it came with HTTP 200, its codes say which status it would have had.

    Only the status and the codes decide. The message may repeat the prompt, which can contain any words.
    """
    message = f"HTTP {status}: {error.message}"
    if status == 200:
        status = error.status
        codes = f" ({', '.join(sorted(error.codes))[:60]})" if error.codes else ""
        message = f"HTTP 200 with an error{codes}: {error.message}"
    if error.codes & CONTENT_FILTER_CODES or error.message == CONTENT_FILTER_MESSAGE:
        return ContentFilterError(message)
    out_of_credit = error.codes & OUT_OF_CREDIT_CODES or error.message.startswith(OUT_OF_CREDIT_MESSAGE)
    permanent = status in PERMANENT_STATUSES or bool(out_of_credit)
    if wait_s is None and status in OVERLOAD_STATUSES:
        wait_s = find_wait_in_words(error.message)
    return AttemptError(
        message,
        retry=_is_retried(status) and not permanent,
        overload=status in OVERLOAD_STATUSES and not permanent,
        maybe_billed=status in MAYBE_BILLED_STATUSES,
        permanent=permanent,
        wait_s=wait_s,
    )


def _is_retried(status: int) -> bool:
    return status in RETRIED_STATUSES or (status >= 500 and status not in HOPELESS_STATUSES)
