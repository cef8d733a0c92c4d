"""The engine: answers a request from the store, or pays for it, sends it and stores the answer before returning it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import time
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from distill_dagster.config import TeacherSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.redaction import list_credentials
from distill_dagster.tasks.deployment_file import find_teacher_limits
from distill_dagster.teacher.completions.batches import BatchRunner
from distill_dagster.teacher.completions.grants import SLEEP_STEP_S, wait_for_grant
from distill_dagster.teacher.completions.ledger import Account, Reservation, Settlement
from distill_dagster.teacher.completions.pacing import build_pace, note_wait
from distill_dagster.teacher.completions.pauses import PauseStore
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.completions.store_writer import StoreWriter
from distill_dagster.teacher.completions.usage import Usage
from distill_dagster.teacher.providers.attempts import (
    AttemptError,
    BudgetError,
    ContentFilterError,
    PendingError,
    PermanentTeacherError,
    TeacherPausedError,
    UnusableAnswerError,
)
from distill_dagster.teacher.providers.client import Endpoint, ask_once, redact_error
from distill_dagster.teacher.providers.exchange import Request, Response
from distill_dagster.teacher.providers.prices import WorstCase, compute_worst_case, find_price
from distill_dagster.teacher.providers.rate_limits import ProviderLimits
from distill_dagster.teacher.providers.responses import build_filtered_response
from distill_dagster.teacher.providers.transport import is_direct

ResponseCheck = Callable[[Response], None]
"""Raises a `TeacherError` for a response that must not be stored, because asking again may return a better one."""
OVERLOAD_RETRY_FACTOR = 4
"""Overload is not the fault of the request, so it is retried this many times as often as other errors."""
NEWS_S = 0.5
"""Other processes hear of a wait if it is this much longer than the one that they know."""
MIN_REPORTED_WAIT_S = 3.0
"""A shorter pause that a teacher asks for is not worth a word."""
MAX_REASON_CHARS = 80
"""Characters of the teacher's words about a pause."""
_compute_backoff = wait_random_exponential(multiplier=0.5, max=30)
_limits_by_teacher: dict[str, ProviderLimits] = {}
_in_flight: dict[str, asyncio.Future[Response]] = {}


def get_limits(endpoint: Endpoint, spec: TeacherSpec) -> ProviderLimits:
    """Return the limits of a teacher. All slices and stages of this process share them."""
    declared = {"concurrency", "requests_per_minute", "tokens_per_minute", "api_key_env"}
    key = hash_content([endpoint.model, endpoint.api_base, spec.is_embedded, spec.model_dump(include=declared)])
    return _limits_by_teacher.setdefault(key, ProviderLimits(spec))


class CompletionEngine:
    """Answers requests to one teacher and counts what that takes. Use it within `event_loop.run_in_loop`."""

    def __init__(
        self, endpoint: Endpoint, spec: TeacherSpec, store: CompletionStore, account: Account | None = None
    ) -> None:
        """`account` says who pays and which caps hold. Without an account there is no cap.

        Raises:
            TeacherError: the account has a cap in USD, and the price of the teacher is unknown.
        """
        self.endpoint, self.spec, self.store = endpoint, spec, store
        self.account = account or Account("", "", "")
        self._writer: StoreWriter | None = None
        self._stored: dict[str, Response] = {}
        self._missing: set[str] = set()
        self._credentials: list[str] = []
        self._stopped: TeacherError | None = None
        self._batch_errors: dict[str, str] | None = None
        self._from_batch: set[str] = set()
        self._answered_at: float | None = None
        """When the last request that has an answer was sent, in seconds since the epoch."""
        self.pending: PendingError | None = None
        """Set when the answer to a request of this engine can only come later: an open batch contains the request, or
        the teacher asked for a pause."""
        self.calls = self.cached = self.prompt_tokens = self.completion_tokens = 0
        self.spent_usd = 0.0
        """The cost of this engine's requests, as far as their price is known."""
        self.unknown_costs = 0
        self.price = find_price(spec) if self.account.budget.has_usd_cap or not spec.is_embedded else None
        self._pace = None if spec.is_free else build_pace(spec, find_teacher_limits(spec.model))
        limits_tokens = self._pace is not None and self._pace.tokens_per_minute is not None
        self._count_tokens = self.account.budget.has_caps or limits_tokens
        if self.account.budget.has_usd_cap and self.price is None and not spec.is_free:
            raise TeacherError(
                f"budget.usd caps the cost of {spec.model}, but its price is not known. Declare teacher.price "
                f"(input_usd and output_usd per million tokens) in task.yaml, or cap tokens instead."
            )

    @property
    def width(self) -> int:
        """How many requests may be under way at the same time."""
        return 1 if self.spec.is_embedded else self.spec.concurrency

    @property
    def spent(self) -> float | None:
        """USD that this engine's requests cost; None if a price is unknown."""
        return None if self.unknown_costs else self.spent_usd

    @property
    def over_budget(self) -> str | None:
        """The budget cap that stopped this engine, or None."""
        return str(self._stopped) if isinstance(self._stopped, BudgetError) else None

    def build_usage(self, seconds: float = 0.0) -> Usage:
        """What this engine took so far; `seconds` is the time that the caller measured."""
        tokens = self.prompt_tokens, self.completion_tokens
        return Usage(self.calls, self.cached, *tokens, self.spent, seconds, self.over_budget)

    def report_progress(self, work: str, done: int, total: int, stored: int | None = None) -> None:
        """Tell whoever listens how much is done and what it took. `stored` is how many the store answered."""
        tokens = self.prompt_tokens + self.completion_tokens
        usd = None if self.spec.is_free else self.spent
        progress.report_progress(
            work, done, total, stored=self.cached if stored is None else stored, tokens=tokens, usd=usd
        )

    def preload(self, keys: Iterable[str]) -> set[str]:
        """Read the stored answers to `keys` at once, and drop those read before. Returns the keys with an answer."""
        wanted = set(keys)
        self._stored = self.store.get(wanted)
        self._missing |= wanted - set(self._stored)
        return set(self._stored)

    async def submit_batches(self, requests: Sequence[Request], origin: str) -> None:
        """Have the provider's batch API answer these requests. From then on `answer` sends nothing online.

        At a budget cap the requests that fit are submitted and answered; `answer` raises for the others.

        Args:
            origin: `task/asset[partition]` that asks.

        Raises:
            BatchPendingError: the batches are not ready yet.
            TeacherPausedError: the provider asked for a long pause.
            TeacherError: the batches cannot be submitted.
        """
        keys = {request.key for request in requests}
        new = keys - self.store.find_stored_keys(keys)
        batches = BatchRunner(self.endpoint, self.spec, self.store, self.account, self.price)
        try:
            self._batch_errors = await batches.run(requests, origin)
        except TeacherPausedError as error:
            PauseStore(self.store).note(self.spec, error)
            raise
        finally:
            self.calls += batches.submitted
        if batches.stopped:
            self._stopped = BudgetError(batches.stopped)
        self._from_batch = self.preload(keys) & new
        for response in (self._stored[key] for key in self._from_batch):
            self.prompt_tokens += response.prompt_tokens or 0
            self.completion_tokens += response.completion_tokens or 0
            self.spent_usd += response.cost_usd or 0.0
            self.unknown_costs += response.cost_usd is None

    async def answer(self, request: Request, check: ResponseCheck | None = None) -> Response:
        """Return the stored answer, or ask the teacher and store its answer.

        Args:
            check: looks at a new response before it is stored.

        Raises:
            PermanentTeacherError: the teacher refuses every request.
            BudgetError: a cap is reached.
            PendingError: an open batch contains the request, or the teacher asked for a long pause.
            TeacherError: no answer came, or `check` rejected it.
        """
        key = request.key
        stored = self._stored.get(key)
        while stored is None and key in _in_flight:  # if the first one fails, the next one asks and the others wait
            with suppress(TeacherError):
                stored = await asyncio.shield(_in_flight[key])
        if stored is None and key not in self._missing:
            stored = self.store.get([key]).get(key)
        if stored is not None:
            self.cached += key not in self._from_batch
            return stored
        if self.endpoint.recorded is not None:
            response = self.endpoint.recorded.answer(request)
            writer = self._writer = self._writer or StoreWriter(self.store)
            await writer.store_answer(key, response)
            return response
        if self._batch_errors is not None and (key in self._batch_errors or self._stopped is None):
            reason = self._batch_errors.get(key, "no batch contains this request")
            unusable = self.store.find_unusable([key]).get(key)
            raise unusable if unusable is not None and str(unusable) == reason else TeacherError(reason)
        if self._stopped is not None:
            raise self._stopped
        coming: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        _in_flight[key] = coming
        try:
            response = await self._ask_with_retries(request, check)
            coming.set_result(response)
            return response
        except BaseException as error:
            coming.set_exception(error if isinstance(error, TeacherError) else TeacherError("the request was not sent"))
            coming.exception()  # mark it as retrieved, since perhaps no task waits for it
            raise
        finally:
            del _in_flight[key]

    async def close(self) -> None:
        """Finish all writes. The engine can be used again."""
        if self._writer is not None:
            await self._writer.close()
            self._writer = None
        if self._answered_at is not None and not self.spec.is_free:
            PauseStore(self.store).clear(self.spec, self._answered_at)

    async def _ask_with_retries(self, request: Request, check: ResponseCheck | None) -> Response:
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, AttemptError) and error.retry),
            stop=_StopRetrying(self.spec.max_retries),
            wait=_compute_wait,
            sleep=self._sleep,
            reraise=True,
        )
        worst = compute_worst_case(request, self.price, exact=self._count_tokens)
        try:
            return await retrying(self._attempt, request, worst, check)
        except AttemptError as error:
            message = redact_error(str(error), self.endpoint)
            if error.permanent:
                self._stopped = PermanentTeacherError(message)
                raise self._stopped from None
            raise _build_final_error(message, error.answer) from None
        except BudgetError as error:
            self._stopped = error
            raise
        except PendingError as error:
            self.pending = error
            if isinstance(error, TeacherPausedError):
                self._stopped = error
            raise

    async def _sleep(self, seconds: float) -> None:
        """Wait between two attempts. It ends early when the asking stops: the next attempt then raises the reason."""
        until, limits = time() + seconds, get_limits(self.endpoint, self.spec)
        while self._stopped is None and (left := until - time()) > 0:
            limits.report_wait()
            await asyncio.sleep(min(left, SLEEP_STEP_S))

    async def _attempt(self, request: Request, worst: WorstCase, check: ResponseCheck | None) -> Response:
        """Reserve the worst case, send the request once, and settle what it took."""
        writer = self._writer = self._writer or StoreWriter(self.store)
        limits = get_limits(self.endpoint, self.spec)
        if not is_direct(self.endpoint):
            import litellm  # noqa: F401  # takes seconds, so before a send time is taken
        async with limits.acquire_slot():
            wanted = Reservation(
                request.key, self.account, self.spec.model, worst, self.spec.timeout_s, pace=self._pace
            )
            reservation = await wait_for_grant(self.store, writer, limits, wanted, self._check_stopped)
            if reservation is None:
                self.cached += 1
                return self.store.get([request.key])[request.key]
            self.calls += 1
            sent_at = time()
            in_full = Settlement(reservation.id, "lost")
            try:
                self._credentials = self._credentials or list_credentials()
                timeout = self.spec.timeout_s
                response = await ask_once(self.endpoint, request, timeout, limits.busy, self._credentials)
            except ContentFilterError as error:
                response = build_filtered_response(str(error))
            except AttemptError as error:
                pause = self._note_overload(limits, error)
                settlement = self._settle_failure(reservation, error)
                if error.answer is not None:
                    reason = redact_error(str(error), self.endpoint)
                    unusable = UnusableAnswerError(reason, error.answer)
                    await writer.settle_unusable(settlement, request.key, unusable)
                else:
                    await writer.settle(settlement)
                if pause is not None:
                    raise pause from None
                raise
            except BaseException:  # cancelled: the teacher may still work on it, and bill it
                await asyncio.shield(writer.settle(in_full))
                raise
            limits.note_answer()
            self._answered_at = sent_at
            cost = self._count(response)
            settlement = self._build_settlement(reservation, response, cost)
            try:
                if check is not None:
                    check(response)
            except TeacherError as error:
                if isinstance(error, PermanentTeacherError):
                    self._stopped = error
                if isinstance(error, UnusableAnswerError):
                    await writer.settle_unusable(settlement, request.key, error)
                else:
                    await writer.settle(settlement)
                raise
            if cost is not None and response.cost_usd is None and not self.spec.is_embedded:
                response = response.with_cost(cost)
            await writer.settle(settlement, request.key, response)
            return response

    def _note_overload(self, limits: ProviderLimits, error: AttemptError) -> TeacherPausedError | None:
        """Send less if the teacher is overloaded. Returns an error if it asks for more time than requests wait."""
        if not error.retry or not (error.overload or error.wait_s):
            return None
        known_s = limits.closed_s
        too_long = limits.note_overload(error.wait_s)
        if error.wait_s is None:
            return None
        if not too_long:
            reason = redact_error(str(error), self.endpoint)[:MAX_REASON_CHARS]
            if self._pace is not None and limits.closed_s > known_s + NEWS_S:
                note_wait(self.store.database, self._pace.provider, error.wait_s, reason)
            if error.wait_s >= MIN_REPORTED_WAIT_S:
                progress.report_wait(f"{self.spec.model} asks for {error.wait_s:.0f} s without requests ({reason})")
            return None
        pause = TeacherPausedError(self.spec.model, error.wait_s, redact_error(str(error), self.endpoint))
        limits.pause(pause)
        PauseStore(self.store).note(self.spec, pause)
        return pause

    def _check_stopped(self) -> None:
        if self._stopped is not None:
            raise self._stopped

    def _count(self, response: Response) -> float | None:
        """Count the tokens and the cost of what came. Returns the cost in USD, or None if it is unknown."""
        cost = self._compute_cost(response)
        self.spent_usd += cost or 0.0
        self.unknown_costs += cost is None
        self.prompt_tokens += response.prompt_tokens or 0
        self.completion_tokens += response.completion_tokens or 0
        return cost

    def _settle_failure(self, reservation: Reservation, error: AttemptError) -> Settlement:
        """What an attempt without a usable answer cost: what its body says, or the worst case, or nothing."""
        if error.answer is not None and error.answer.prompt_tokens:
            return self._build_settlement(reservation, error.answer, self._count(error.answer))
        if error.maybe_billed:
            self.spent_usd += reservation.worst.usd or 0.0
            return Settlement(reservation.id, "lost")
        return Settlement(reservation.id, "released")

    def _build_settlement(self, reservation: Reservation, response: Response, cost: float | None) -> Settlement:
        """The tokens and cost of a response. Without a token count the worst case counts, so that the cap holds."""
        if None in (response.prompt_tokens, response.completion_tokens) and response.finish_reason != "content_filter":
            return Settlement(reservation.id, "lost")
        tokens = (response.prompt_tokens or 0) + (response.completion_tokens or 0)
        return Settlement(reservation.id, "settled", tokens, cost)

    def _compute_cost(self, response: Response) -> float | None:
        """USD by the declared price, else the cost that litellm computed, else tokens by litellm's price list."""
        if response.finish_reason == "content_filter" and response.prompt_tokens is None:
            return 0.0
        if self.spec.price is None and response.cost_usd is not None:
            return response.cost_usd
        if self.price is None or response.prompt_tokens is None or response.completion_tokens is None:
            return None
        return self.price.compute_cost(response.prompt_tokens, response.completion_tokens)


def _build_final_error(message: str, answer: Response | None) -> TeacherError:
    return TeacherError(message) if answer is None else UnusableAnswerError(message, answer)


class _StopRetrying:
    """Stops after `max_retries` errors, or after `OVERLOAD_RETRY_FACTOR` times as many refusals for overload."""

    def __init__(self, max_retries: int) -> None:
        self._left = {False: max_retries, True: max_retries * OVERLOAD_RETRY_FACTOR}

    def __call__(self, state: RetryCallState) -> bool:
        error: Any = state.outcome.exception() if state.outcome else None
        self._left[error.overload] -= 1
        return self._left[error.overload] < 0


def _compute_wait(state: RetryCallState) -> float:
    """Seconds: a random wait that grows with each attempt, but at least as long as the teacher asks for."""
    error: Any = state.outcome.exception() if state.outcome else None
    return max(_compute_backoff(state), error.wait_s or 0.0)
