"""Group commit: writes that arrive while a transaction is under way share the next one."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from distill_dagster.teacher.completions.ledger import Decision, Reservation, Settlement
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.attempts import UnusableAnswerError
from distill_dagster.teacher.providers.exchange import Response

SETTLEMENT_POLL_S = 0.25


class StoreWriter:
    """The completion store as the event loop sees it. It writes in a thread, many answers per transaction.

    One transaction per answer would limit durable answers to the number of disk flushes per second.
    """

    def __init__(self, store: CompletionStore) -> None:
        self._store = store
        self._answers: dict[str, Response] = {}
        self._unusable: dict[str, UnusableAnswerError] = {}
        self._settlements: list[Settlement] = []
        self._reservations: list[Reservation] = []
        self._waiting: list[tuple[asyncio.Future[Decision | None], int | None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "store")
        self._changed = asyncio.Event()

    async def reserve(self, reservation: Reservation) -> Decision:
        """Decide whether an attempt may be sent. If it may, the ledger has its reservation on return."""
        self._reservations.append(reservation)
        decision = await self._commit(len(self._reservations) - 1)
        assert decision is not None
        return decision

    async def settle(self, settlement: Settlement, key: str | None = None, response: Response | None = None) -> None:
        """Record how an attempt ended, together with its answer if there is one. Both are durable on return."""
        if key is not None and response is not None:
            self._answers[key] = response
        self._settlements.append(settlement)
        await self._commit(None)
        self._changed.set()

    async def settle_unusable(self, settlement: Settlement, key: str, error: UnusableAnswerError) -> None:
        """Record how an attempt ended, together with what came instead of an answer."""
        self._unusable[key] = error
        await self.settle(settlement)

    async def store_answer(self, key: str, response: Response) -> None:
        """Store an answer that no provider was asked for. It is durable on return."""
        self._answers[key] = response
        await self._commit(None)

    async def wait_for_settlement(self) -> None:
        """Wait for a settlement in this process, or long enough to look for one of another process."""
        self._changed.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), SETTLEMENT_POLL_S)

    async def close(self) -> None:
        """Finish all writes and end the thread."""
        if self._writing is not None:
            await self._writing
        self._thread.shutdown()

    async def _commit(self, place: int | None) -> Decision | None:
        """Wait for the transaction with what was added just now; return the decision on reservation `place`."""
        future: asyncio.Future[Decision | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, place))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        return await future

    async def _write(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            answers, settlements, reservations = self._answers, self._settlements, self._reservations
            waiting, unusable = self._waiting, self._unusable
            self._answers, self._settlements, self._reservations, self._waiting = {}, [], [], []
            self._unusable = {}
            try:
                decisions = await loop.run_in_executor(
                    self._thread, self._store.commit, answers, settlements, reservations, unusable
                )
            except Exception as error:
                for future, _ in waiting:
                    if not future.done():
                        future.set_exception(error)
                continue
            for future, place in waiting:
                if not future.done():  # the waiting task may be cancelled
                    future.set_result(None if place is None else decisions[place])
