"""Limits of this process on the requests to one provider: concurrency that adapts to overload, waits and pauses."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from distill_dagster.config import TeacherSpec
from distill_dagster.core import progress
from distill_dagster.teacher.providers.attempts import TeacherPausedError

MAX_WAIT_S = 600.0
"""Requests wait this long for an overloaded teacher. If it asks for more, alone or in sum, all asking stops."""
WAIT_STEP_S = 1.0
"""A waiting request looks this often whether the asking has stopped meanwhile."""
REPORT_INTERVAL_S = 5.0
SHRINK_FACTOR = 0.5
GROWTH_RATE = 0.1
"""The concurrency grows by about a tenth per round of answers: from half to all of it in about 8 rounds."""
SHRINK_COOLDOWN_S = 1.0
"""Ignore refusals of requests that were sent before the concurrency last shrank."""


class ProviderLimits:
    """Limits that all requests of this process to one provider share.

    The concurrency halves on overload and recovers (additive increase, multiplicative decrease, as in TCP: Chiu and
    Jain 1989). The store's database has what all processes share, such as the requests and tokens per minute.
    """

    def __init__(self, spec: TeacherSpec) -> None:
        self.max_width = 1 if spec.is_embedded else spec.concurrency
        self.width = float(self.max_width)
        self.busy = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed_until = self._shrunk_at = 0.0
        self._reported_at = -REPORT_INTERVAL_S
        self._refused_since: float | None = None
        """When the teacher first asked to wait, without an answer since then."""
        self._pause: TeacherPausedError | None = None

    @asynccontextmanager
    async def acquire_slot(self) -> AsyncIterator[None]:
        """Wait until one more request may be under way, and hold its slot for the block.

        Raises:
            TeacherPausedError: the teacher asked for a pause that no request waits for.
        """
        await self._enter()
        try:
            await self.wait_until_open()
            yield
        finally:
            self.busy -= 1
            self._wake()

    def refuse_in_pause(self) -> None:
        """Raise the error of a pause that the teacher asked for and that has not ended.

        Raises:
            TeacherPausedError: there is such a pause.
        """
        if self._pause is not None and not self._pause.is_over:
            raise self._pause

    def report_wait(self) -> None:
        """Tell the listener how long nothing is sent because the teacher asked to wait, at most every few seconds."""
        wait, now = self.closed_s, time.monotonic()
        if wait > 0 and now - self._reported_at > REPORT_INTERVAL_S:
            self._reported_at = now
            progress.report_progress(f"the teacher asks to wait {wait:.0f} s", 0, 0)

    async def wait_until_open(self) -> None:
        """Wait as long as the teacher asked for.

        Raises:
            TeacherPausedError: the teacher asked for a pause that no request waits for.
        """
        self.refuse_in_pause()
        while (wait := self.closed_s) > 0:
            self.report_wait()
            await asyncio.sleep(min(wait, WAIT_STEP_S))
            self.refuse_in_pause()

    async def wait_for_send_time(self, send_at: float | None, late_s: float) -> bool:
        """Wait until a send time by the monotonic clock, and as long as the teacher asked for. None: at once.

        Returns:
            Whether the request may be sent. If the send time is more than `late_s` ago, it needs another one.

        Raises:
            TeacherPausedError: the teacher asked for a pause that no request waits for.
        """
        while send_at is not None and (wait := send_at - time.monotonic()) > 0:
            await asyncio.sleep(min(wait, WAIT_STEP_S))
            self.refuse_in_pause()
        await self.wait_until_open()
        return send_at is None or time.monotonic() - send_at <= late_s

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

    def note_overload(self, wait_s: float | None) -> bool:
        """Note a refusal for overload: halve the concurrency, and send nothing for `wait_s` seconds.

        Returns:
            Whether that is more than requests wait: `wait_s` alone, or with the waits since the last answer.
        """
        now = time.monotonic()
        if now - self._shrunk_at > SHRINK_COOLDOWN_S:
            self.width, self._shrunk_at = max(1.0, self.width * SHRINK_FACTOR), now
        if not wait_s:
            return False
        if self._refused_since is None:
            self._refused_since = now
        if now + wait_s - self._refused_since > MAX_WAIT_S:
            return True
        self.close(wait_s)
        return False

    @property
    def closed_s(self) -> float:
        """For how many seconds nothing is sent because the teacher asked to wait."""
        return max(0.0, self._closed_until - time.monotonic())

    def close(self, wait_s: float) -> None:
        """Send nothing for `wait_s` seconds."""
        self._closed_until = max(self._closed_until, time.monotonic() + wait_s)

    def pause(self, error: TeacherPausedError) -> None:
        """Refuse all requests with this error until its pause is over. Of several pauses the longest counts."""
        if self._pause is None or self._pause.until < error.until:
            self._pause = error
        self._refused_since = None

    def note_answer(self) -> None:
        """Note an answer: raise the concurrency a little, up to the declared one."""
        self._refused_since = None
        if self.width < self.max_width:
            self.width = min(float(self.max_width), self.width + GROWTH_RATE + 1 / self.width)
            self._wake()
