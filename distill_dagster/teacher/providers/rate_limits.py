"""How much is asked of a teacher at a time: shared by all that ask it from this process."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiolimiter import AsyncLimiter

from distill_dagster.config import TeacherSpec

SHRINK_FACTOR = 0.5
GROWTH_RATE = 0.1
"""By a tenth of itself while as many requests as it allows come back: from a half to the whole in some 8 rounds."""
SHRINK_COOLDOWN_S = 1.0
"""Refusals of requests that were sent before the last shrinking tell nothing new."""


def _build_rate_limiter(limit: int | None, buckets: int) -> AsyncLimiter | None:
    if limit is None:
        return None
    burst = max(1.0, limit / buckets)
    return AsyncLimiter(burst, 60 * burst / limit)


class ProviderLimits:
    """Bounded concurrency that halves on overload and recovers (additive increase, multiplicative decrease, as TCP
    does: Chiu and Jain 1989), and the declared requests and tokens per minute."""

    def __init__(self, spec: TeacherSpec) -> None:
        self.most = 1 if spec.embedded else spec.concurrency
        self.width = float(self.most)
        self.busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed_until = self._shrunk_at = 0.0
        # A bucket of a whole minute would let twice the limit through in the first one: all at once, and as it drains.
        self._requests = _build_rate_limiter(spec.requests_per_minute, buckets=20)
        self._tokens = _build_rate_limiter(spec.tokens_per_minute, buckets=4)

    @asynccontextmanager
    async def slot(self, tokens: int) -> AsyncIterator[None]:
        """Wait for a place, for a request of so many tokens at most."""
        await self._enter()
        try:
            while (wait := self._closed_until - time.monotonic()) > 0:
                await asyncio.sleep(wait)
            if self._requests is not None:
                await self._requests.acquire()
            if self._tokens is not None:
                await self._tokens.acquire(min(tokens, self._tokens.max_rate))
            yield
        finally:
            self.busy -= 1
            self._wake()

    async def _enter(self) -> None:
        if self.busy < int(self.width) and not self._waiting:
            self.busy += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn  # whoever wakes us has counted us in
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.busy -= 1
                self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and self.busy < int(self.width):
            turn = self._waiting.popleft()
            if not turn.done():
                self.busy += 1
                turn.set_result(None)

    def overloaded(self, wait_s: float | None) -> None:
        """The teacher refused for overload: fewer at a time, and none before it wants to be asked again."""
        now = time.monotonic()
        if wait_s:
            self._closed_until = max(self._closed_until, now + wait_s)
        if now - self._shrunk_at > SHRINK_COOLDOWN_S:
            self.width, self._shrunk_at = max(1.0, self.width * SHRINK_FACTOR), now

    def answered(self) -> None:
        """An answer came: a little more at a time, up to the declared concurrency."""
        if self.width < self.most:
            self.width = min(float(self.most), self.width + GROWTH_RATE + 1 / self.width)
            self._wake()
