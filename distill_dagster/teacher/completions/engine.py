"""The engine: what is stored is not asked, what is asked is paid from a budget and stored before it is used."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_random_exponential

from distill_dagster.config import TeacherSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.redaction import list_credentials
from distill_dagster.teacher.completions.batches import BatchRunner
from distill_dagster.teacher.completions.ledger import Account, Decision, Reservation, Settlement
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.completions.usage import Usage
from distill_dagster.teacher.providers.attempts import (
    AttemptError,
    BudgetError,
    ContentFilterError,
    PermanentTeacherError,
)
from distill_dagster.teacher.providers.client import Endpoint, ask_once, build_filtered_response, redact_error
from distill_dagster.teacher.providers.exchange import Request, Response
from distill_dagster.teacher.providers.prices import WorstCase, compute_worst_case, find_price
from distill_dagster.teacher.providers.rate_limits import ProviderLimits

ResponseCheck = Callable[[Response], None]
"""Raises a `TeacherError` for a response that must not be stored: asking again may bring another."""
OVERLOAD_RETRY_FACTOR = 4
"""Overload is no fault of the request: it is sent again so many times as often as after other errors."""
MAX_RETRY_AFTER_S = 600.0
SETTLEMENT_POLL_S = 0.25
_compute_backoff = wait_random_exponential(multiplier=0.5, max=30)


class StoreWriter:
    """The store, seen from the event loop: what is to be written while a write is under way joins the next one.

    One transaction for many answers is what makes hundreds of durable answers a second possible.
    """

    def __init__(self, store: CompletionStore) -> None:
        self._store = store
        self._answers: dict[str, Response] = {}
        self._ended: list[Settlement] = []
        self._wanted: list[Reservation] = []
        self._waiting: list[tuple[asyncio.Future[Decision | None], int | None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "store")
        self._changed = asyncio.Event()

    async def reserve(self, wanted: Reservation) -> Decision:
        """Whether an attempt may be sent; where it may, it is in the ledger."""
        self._wanted.append(wanted)
        verdict = await self._written(len(self._wanted) - 1)
        assert verdict is not None
        return verdict

    async def settle(self, ended: Settlement, key: str | None = None, response: Response | None = None) -> None:
        """Write down how an attempt ended, with its answer if one came. On return both are durable."""
        if key is not None and response is not None:
            self._answers[key] = response
        self._ended.append(ended)
        await self._written(None)
        self._changed.set()

    async def keep(self, key: str, response: Response) -> None:
        """Store an answer that nobody was asked for. On return it is durable."""
        self._answers[key] = response
        await self._written(None)

    async def settled(self) -> None:
        """Wait until something was settled, here or, for all we know, elsewhere."""
        self._changed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), SETTLEMENT_POLL_S)

    async def _written(self, place: int | None) -> Decision | None:
        mine: asyncio.Future[Decision | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((mine, place))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return await mine

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            answers, ended, wanted, waiting = self._answers, self._ended, self._wanted, self._waiting
            self._answers, self._ended, self._wanted, self._waiting = {}, [], [], []
            try:
                verdicts = await loop.run_in_executor(self._thread, self._store.commit, answers, ended, wanted)
            except Exception as error:
                for future, _ in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, place in waiting:
                if not future.done():  # whoever waited may have been cancelled
                    future.set_result(None if place is None else verdicts[place])

    async def close(self) -> None:
        """Write what is left."""
        if self._writing is not None:
            await self._writing
        self._thread.shutdown()


_limits_by_teacher: dict[str, ProviderLimits] = {}
_in_flight: dict[str, asyncio.Future[Response]] = {}


def get_limits(endpoint: Endpoint, spec: TeacherSpec) -> ProviderLimits:
    """The limits of a teacher: one for all that ask it from this process, be it for other slices or other stages."""
    declared = {"concurrency", "requests_per_minute", "tokens_per_minute", "api_key_env"}
    key = hash_content([endpoint.model, endpoint.api_base, spec.embedded, spec.model_dump(include=declared)])
    return _limits_by_teacher.setdefault(key, ProviderLimits(spec))


class CompletionEngine:
    """Answers requests to one teacher, within the loop of `teacher.loop.run`; it counts what it took."""

    def __init__(
        self, endpoint: Endpoint, spec: TeacherSpec, store: CompletionStore, account: Account | None = None
    ) -> None:
        """`account` is who pays; without one there is no cap."""
        self.endpoint, self.spec, self.store = endpoint, spec, store
        self.account = account or Account("", "", "")
        self._books: StoreWriter | None = None
        self._found: dict[str, Response] = {}
        self._missing: set[str] = set()
        self._hidden: list[str] = []
        self._stopped: TeacherError | None = None
        self._batched: dict[str, str] | None = None
        self._fresh: set[str] = set()
        self.calls = self.cached = self.prompt_tokens = self.completion_tokens = 0
        self.spent_usd = 0.0
        """What the requests sent by this engine cost, as far as their price is known."""
        self.unknown_costs = 0
        self.price = find_price(spec) if self.account.budget.in_usd or not spec.embedded else None
        self._exact = self.account.budget.any or spec.tokens_per_minute is not None
        if self.account.budget.in_usd and self.price is None and not spec.free:
            raise TeacherError(
                f"budget.usd caps what {spec.model} may cost, and its price is not known. Declare teacher.price "
                f"(input_usd and output_usd for a million tokens) in task.yaml, or cap tokens instead."
            )

    @property
    def spent(self) -> float | None:
        """USD that this engine's requests cost; None where a price is unknown."""
        return None if self.unknown_costs else self.spent_usd

    @property
    def width(self) -> int:
        """How many requests may be under way at the same time."""
        return 1 if self.spec.embedded else self.spec.concurrency

    def usage(self, seconds: float = 0.0) -> Usage:
        """What this engine took so far; `seconds` is the time that the caller measured."""
        return Usage(
            self.calls,
            self.cached,
            self.prompt_tokens,
            self.completion_tokens,
            self.spent,
            seconds,
            self.over_budget,
        )

    @property
    def over_budget(self) -> str | None:
        """Which cap stopped this engine, if one did."""
        return str(self._stopped) if isinstance(self._stopped, BudgetError) else None

    def preload(self, keys: Iterable[str]) -> set[str]:
        """Fetch the stored answers among `keys` in one go, instead of what was fetched before; those that are there."""
        wanted = set(keys)
        self._found = self.store.get(wanted)
        self._missing |= wanted - set(self._found)
        return set(self._found)

    async def prepare(self, requests: Sequence[Request], origin: str) -> None:
        """Have all of these answered by batches; from then on `answer` asks nothing by itself.

        Args:
            origin: `task/asset[partition]`, for which it is asked.

        Raises:
            BudgetError: a cap is reached; what was submitted before stays.
            TeacherError: the batches could not be submitted, or are not ready yet.
        """
        keys = {request.key for request in requests}
        new = keys - self.store.known(keys)
        batches = BatchRunner(self.endpoint, self.spec, self.store, self.account, self.price)
        try:
            self._batched = await batches.run(requests, origin)
        finally:
            self.calls += batches.submitted
        self._fresh = self.preload(keys) & new
        for response in (self._found[key] for key in self._fresh):
            self.prompt_tokens += response.prompt_tokens or 0
            self.completion_tokens += response.completion_tokens or 0
            self.spent_usd += response.cost_usd or 0.0
            self.unknown_costs += response.cost_usd is None

    async def answer(self, request: Request, refuse: ResponseCheck | None = None) -> Response:
        """The stored answer, else a new one that is stored before it is returned.

        Raises:
            PermanentTeacherError: nothing can be asked of this teacher.
            BudgetError: a cap is reached.
            TeacherError: no answer came, or `refuse` did not take it.
        """
        key = request.key
        found = self._found.get(key)
        if found is None and key in _in_flight:
            with suppress(TeacherError):
                found = await asyncio.shield(_in_flight[key])
        if found is None and key not in self._missing:
            found = self.store.get([key]).get(key)
        if found is not None:
            self.cached += key not in self._fresh
            return found
        if self.endpoint.recorded is not None:
            response = self.endpoint.recorded.answer(request)
            books = self._books = self._books or StoreWriter(self.store)
            await books.keep(key, response)
            return response
        if self._batched is not None:
            raise TeacherError(self._batched.get(key, "no batch asked this"))
        if self._stopped is not None:
            raise self._stopped
        coming: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        _in_flight[key] = coming
        try:
            response = await self._ask(request, key, refuse)
            coming.set_result(response)
            return response
        except BaseException as error:
            coming.set_exception(error if isinstance(error, TeacherError) else TeacherError("it was not asked"))
            coming.exception()  # seen: nobody else may be waiting
            raise
        finally:
            del _in_flight[key]

    async def _ask(self, request: Request, key: str, refuse: ResponseCheck | None) -> Response:
        retrying = AsyncRetrying(
            retry=retry_if_exception(lambda error: isinstance(error, AttemptError) and error.retry),
            stop=_StopRetrying(self.spec.max_retries),
            wait=_compute_wait,
            reraise=True,
        )
        worst = compute_worst_case(request, self.price, exact=self._exact)
        try:
            return await retrying(self._attempt, request, key, worst, refuse)
        except AttemptError as error:
            message = redact_error(str(error), self.endpoint)
            if error.permanent:
                self._stopped = PermanentTeacherError(message)
                raise self._stopped from None
            raise TeacherError(message) from None
        except BudgetError as error:
            self._stopped = error
            raise

    async def _attempt(self, request: Request, key: str, worst: WorstCase, refuse: ResponseCheck | None) -> Response:
        books = self._books = self._books or StoreWriter(self.store)
        limits = get_limits(self.endpoint, self.spec)
        async with limits.slot(worst.tokens):
            wanted = Reservation(key, self.account, self.spec.model, worst, self.spec.timeout_s)
            if (there := await self._granted(books, wanted)) is not None:
                self.cached += 1
                return there
            self.calls += 1
            in_full = Settlement(wanted.id, "lost")
            try:
                hidden = self._hidden = self._hidden or list_credentials()
                response = await ask_once(self.endpoint, request, self.spec.timeout_s, limits.busy, hidden)
            except ContentFilterError as error:
                response = build_filtered_response(str(error))
            except AttemptError as error:
                if error.overload:
                    limits.overloaded(error.wait_s)
                if error.maybe_billed:
                    self.spent_usd += worst.usd or 0.0
                await books.settle(in_full if error.maybe_billed else Settlement(wanted.id, "released"))
                raise
            except BaseException:  # cancelled: the teacher may be at work on it
                await asyncio.shield(books.settle(in_full))
                raise
            limits.answered()
            tokens = (response.prompt_tokens or 0) + (response.completion_tokens or 0)
            cost = self._cost(response)
            # Without a count of its tokens the cap can only hold if the request counts in full.
            counted = response.prompt_tokens is not None or response.finish_reason == "content_filter"
            ended = Settlement(wanted.id, "settled", tokens, cost) if counted else in_full
            self.spent_usd += cost or 0.0
            self.unknown_costs += cost is None
            self.prompt_tokens += response.prompt_tokens or 0
            self.completion_tokens += response.completion_tokens or 0
            try:
                if refuse is not None:
                    refuse(response)
            except TeacherError as error:
                if isinstance(error, PermanentTeacherError):
                    self._stopped = error
                await books.settle(ended)
                raise
            if cost is not None and response.cost_usd is None and not self.spec.embedded:
                response = response.with_cost(cost)
            await books.settle(ended, key, response)
            return response

    def _cost(self, response: Response) -> float | None:
        """USD: what the declared price says, else what litellm worked out, else tokens by its list."""
        if response.finish_reason == "content_filter" and response.prompt_tokens is None:
            return 0.0
        if self.spec.price is None and response.cost_usd is not None:
            return response.cost_usd
        if self.price is None or response.prompt_tokens is None:
            return None
        return self.price.of(response.prompt_tokens, response.completion_tokens or 0)

    async def _granted(self, books: StoreWriter, wanted: Reservation) -> Response | None:
        """Wait until an attempt may be sent; the answer where it came meanwhile.

        Raises:
            BudgetError: a cap is reached.
        """
        while True:
            if self._stopped is not None:
                raise self._stopped
            verdict = await books.reserve(wanted)
            match verdict.kind:
                case "granted":
                    return None
                case "stored":
                    return self.store.get([wanted.key])[wanted.key]
                case "over":
                    raise BudgetError(
                        f"{verdict.why}. Raise it, in task.yaml or of the command, and run again: what came is kept."
                    )
                case _:
                    await books.settled()

    async def close(self) -> None:
        """Write what is left. The engine can be used again."""
        if self._books is not None:
            await self._books.close()
            self._books = None


class _StopRetrying:
    """Stops one request after `max_retries` errors, or several times as many refusals for overload."""

    def __init__(self, max_retries: int) -> None:
        self._left = {False: max_retries, True: max_retries * OVERLOAD_RETRY_FACTOR}

    def __call__(self, state: RetryCallState) -> bool:
        error: Any = state.outcome.exception() if state.outcome else None
        self._left[error.overload] -= 1
        return self._left[error.overload] < 0 or (error.wait_s or 0.0) > MAX_RETRY_AFTER_S


def _compute_wait(state: RetryCallState) -> float:
    """Seconds: a random wait that grows with each attempt, and no less than the teacher asks for."""
    error: Any = state.outcome.exception() if state.outcome else None
    return max(_compute_backoff(state), error.wait_s or 0.0)
