"""Answer requests that wait at the same time in one batch, prompts of similar length together.

Nothing waits for a batch to fill: a free worker takes what is there. On a processor, long and short prompts in one
batch lose more to padding than the batch gains, so the oldest request is joined by those nearest to it in length.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from distill_dagster.core.errors import ModelError
from distill_dagster.release.runtimes.types import Runtime, StudentAnswer
from distill_dagster.serving.errors import BusyError, UnavailableError
from distill_dagster.serving.metrics import ServerMetrics
from distill_dagster.student.types import StudentPrompt


@dataclass(frozen=True)
class _Waiting:
    """A request that waits for its turn."""

    prompt: StudentPrompt
    length: int
    answer: asyncio.Future[StudentAnswer]


class StudentBatcher:
    """Asks a runtime from one event loop.

    It starts a runtime whose process has ended again, once for each request or look at its health.
    """

    def __init__(self, runtime: Runtime, max_waiting: int, metrics: ServerMetrics) -> None:
        self.runtime = runtime
        self._max_waiting, self._metrics = max_waiting, metrics
        self._waiting: list[_Waiting] = []
        self._waiting_streams = 0
        self._arrived = asyncio.Event()
        self._slots = asyncio.Semaphore(runtime.concurrency)
        self._opening = threading.Lock()
        self._pool = ThreadPoolExecutor(runtime.concurrency, thread_name_prefix="student")
        self._workers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Start the workers, in the running event loop. The runtime is open."""
        self._workers = [asyncio.create_task(self._work()) for _ in range(self.runtime.concurrency)]

    async def stop(self) -> None:
        """End the workers. Requests that still wait get an error."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        for one in self._waiting:
            if not one.answer.done():
                one.answer.set_exception(UnavailableError("The server is stopping."))
        self._waiting.clear()
        self._pool.shutdown(wait=True)

    @property
    def waiting(self) -> int:
        """How many requests wait for the student."""
        return len(self._waiting) + self._waiting_streams

    def refuse_if_busy(self) -> None:
        """Refuse one more request if too many wait.

        Raises:
            BusyError: too many requests wait.
        """
        if self.waiting >= self._max_waiting:
            raise BusyError(f"{self._max_waiting} requests wait for the student already. Try again later.")

    async def answer(self, prompt: StudentPrompt) -> StudentAnswer:
        """The student's answer to one prompt.

        Raises:
            BusyError: too many requests wait.
            UnavailableError: the runtime cannot answer.
        """
        self.refuse_if_busy()
        one = _Waiting(prompt, len(prompt.text), asyncio.get_running_loop().create_future())
        self._waiting.append(one)
        self._arrived.set()
        return await one.answer

    async def stream(self, prompt: StudentPrompt) -> AsyncIterator[str | StudentAnswer]:
        """The student's answer in pieces, and at last the whole. Closing the iterator stops the generation.

        Raises:
            BusyError: too many requests wait.
            UnavailableError: the runtime cannot answer.
        """
        self.refuse_if_busy()
        loop = asyncio.get_running_loop()
        parts: asyncio.Queue[str | StudentAnswer | BaseException | None] = asyncio.Queue()
        closed = threading.Event()

        def pump() -> None:
            def put(part: str | StudentAnswer | BaseException | None) -> None:
                with suppress(RuntimeError):  # the loop is closed
                    loop.call_soon_threadsafe(parts.put_nowait, part)

            try:
                self._ensure_alive()
                pieces = self.runtime.stream(prompt)
                for part in pieces:
                    put(part)
                    if closed.is_set():
                        break
                if close := getattr(pieces, "close", None):
                    close()
            except Exception as error:
                put(error)
            put(None)

        self._waiting_streams += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting_streams -= 1
        try:
            future = loop.run_in_executor(self._pool, pump)
            try:
                while (part := await parts.get()) is not None:
                    if isinstance(part, BaseException):
                        raise UnavailableError(f"The student cannot answer: {part}") from part
                    yield part
            finally:
                closed.set()
                await asyncio.shield(future)
        finally:
            self._slots.release()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            async with self._slots:
                batch = self._take_batch()
                if not batch:
                    continue
                self._metrics.batch_size.observe(len(batch))
                prompts = [one.prompt for one in batch]
                try:
                    results = await loop.run_in_executor(self._pool, self._answer_batch, prompts)
                except asyncio.CancelledError:
                    for one in batch:
                        if not one.answer.done():
                            one.answer.set_exception(UnavailableError("The server is stopping."))
                    raise
                for one, result in zip(batch, results, strict=True):
                    if one.answer.done():  # its client has gone, or it took too long
                        continue
                    if isinstance(result, StudentAnswer):
                        one.answer.set_result(result)
                    else:
                        one.answer.set_exception(result)

    def _take_batch(self) -> list[_Waiting]:
        """The oldest request, and those nearest to it in length."""
        self._waiting = [one for one in self._waiting if not one.answer.done()]
        size = self.runtime.batch_size
        batch = self._waiting
        if len(batch) > size:
            oldest = batch[0]
            batch = sorted(batch, key=lambda one: (one is not oldest, abs(one.length - oldest.length)))[:size]
        taken = set(map(id, batch))
        self._waiting = [one for one in self._waiting if id(one) not in taken]
        if not self._waiting:
            self._arrived.clear()
        return batch

    def _answer_batch(self, prompts: list[StudentPrompt]) -> list[StudentAnswer | UnavailableError]:
        """Answer a batch. If it fails, its prompts are asked one by one, so that one costs no other its answer."""
        try:
            self._ensure_alive()
            return list(self.runtime.answer(prompts))
        except Exception:
            return [self._answer_one(prompt) for prompt in prompts]

    def _answer_one(self, prompt: StudentPrompt) -> StudentAnswer | UnavailableError:
        try:
            self._ensure_alive()
            return self.runtime.answer([prompt])[0]
        except Exception as error:
            return UnavailableError(f"The student cannot answer: {error}")

    def start_again(self) -> None:
        """Start a runtime whose process has ended, in the background. It does nothing while one is starting."""
        if not self._opening.locked():
            self._pool.submit(self._try_start)

    def _try_start(self) -> None:
        with suppress(ModelError):  # the next request says why it does not start
            self._ensure_alive()

    def _ensure_alive(self) -> None:
        """Start the runtime again if its process has ended.

        Raises:
            ModelError: it does not start.
        """
        with self._opening:
            if self.runtime.is_alive():
                return
            self._metrics.restarts.inc()
            self.runtime.close()
            self.runtime.open()
            if not self.runtime.is_alive():
                raise ModelError(f"{self.runtime.name} does not start again.")
