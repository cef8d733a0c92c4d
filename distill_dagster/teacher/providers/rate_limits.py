"""Limits on the requests to one provider: concurrency that adapts to overload, requests and tokens per minute."""

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
"""The concurrency grows by about a tenth per round of answers: from half to all of it in about 8 rounds."""
SHRINK_COOLDOWN_S = 1.0
"""Ignore refusals of requests that were sent before the concurrency last shrank."""


def _build_rate_limiter(limit: int | None, buckets: int) -> AsyncLimiter | None:
    if limit is None:
        return None
    burst = max(1.0, limit / buckets)
    return AsyncLimiter(burst, 60 * burst / limit)


class ProviderLimits:
    """Limits that all requests of this process to one provider share.

    The concurrency halves on overload and recovers (additive increase, multiplicative decrease, as in TCP: Chiu and
    Jain 1989). The declared requests and tokens per minute hold as well.
    """

    def __init__(self, spec: TeacherSpec) -> None:
        self.max_width = 1 if spec.is_embedded else spec.concurrency
        self.width = float(self.max_width)
        self.busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed_until = self._shrunk_at = 0.0
        # A bucket for a whole minute would allow twice the limit in the first minute: the full bucket and its refill.
        self._requests = _build_rate_limiter(spec.requests_per_minute, buckets=20)
        self._tokens = _build_rate_limiter(spec.tokens_per_minute, buckets=4)

    @asynccontextmanager
    async def acquire_slot(self, tokens: int) -> AsyncIterator[None]:
        """Wait until a request of at most `tokens` tokens may be sent, and hold its slot for the block."""
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
            await turn  # `_wake` has counted this request
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

    def note_overload(self, wait_s: float | None) -> None:
        """Note a refusal for overload: halve the concurrency, and send nothing for `wait_s` seconds."""
        now = time.monotonic()
        if wait_s:
            self._closed_until = max(self._closed_until, now + wait_s)
        if now - self._shrunk_at > SHRINK_COOLDOWN_S:
            self.width, self._shrunk_at = max(1.0, self.width * SHRINK_FACTOR), now

    def note_answer(self) -> None:
        """Note an answer: raise the concurrency a little, up to the declared one."""
        if self.width < self.max_width:
            self.width = min(float(self.max_width), self.width + GROWTH_RATE + 1 / self.width)
            self._wake()
