"""Ask the teacher where the student is unsure, and do not ask it for a while after it failed."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from distill_dagster.core.errors import TeacherError
from distill_dagster.student.types import StudentPrompt

PAUSE_S = 10.0
"""Seconds without requests after the teacher failed. The student answers meanwhile, without waiting for a timeout."""
WIDTH = 8
"""How many prompts the teacher is asked at the same time."""


@dataclass(frozen=True)
class TeacherAnswer:
    """The teacher's answer: a canonical JSON value of the kind. Tokens are those of all its samples."""

    answer: Any
    confidence: float | None
    prompt_tokens: int
    completion_tokens: int
    reasoning: str | None = None


class Teacher(Protocol):
    """The teacher of a task, asked as the pipeline asks it: with its examples, store, budget and terms."""

    def answer(self, prompt: StudentPrompt) -> TeacherAnswer:
        """Answer one prompt. Several threads may call it.

        Raises:
            TeacherError: there is no answer: the teacher fails, a budget is reached, or what came is no valid answer.
        """
        ...

    def close(self) -> None:
        """Give back servers and connections."""
        ...


class TeacherGate:
    """Asks a teacher with a timeout, and pauses after a failure."""

    def __init__(self, teacher: Teacher, timeout_s: float) -> None:
        self._teacher, self._timeout_s = teacher, timeout_s
        self._pool = ThreadPoolExecutor(WIDTH, thread_name_prefix="fallback")
        self._paused_until = 0.0
        self._reason = ""

    async def answer(self, prompt: StudentPrompt) -> TeacherAnswer:
        """The teacher's answer. A call that takes too long goes on, and its answer is in the store for the next time.

        Raises:
            TeacherError: there is no answer in time, or the teacher has just failed.
        """
        if time.monotonic() < self._paused_until:
            raise TeacherError(f"the teacher is not asked for some seconds, since it failed: {self._reason}")
        call = asyncio.get_running_loop().run_in_executor(self._pool, self._teacher.answer, prompt)
        try:
            return await asyncio.wait_for(asyncio.shield(call), self._timeout_s)
        except TimeoutError:
            call.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody waits for it now
            self._pause(f"no answer within {self._timeout_s:g} s")
            raise TeacherError(f"the teacher gave {self._reason}") from None
        except UnansweredError:
            raise
        except TeacherError as error:
            self._pause(str(error))
            raise

    def _pause(self, reason: str) -> None:
        self._paused_until, self._reason = time.monotonic() + PAUSE_S, reason

    def close(self) -> None:
        """Wait for the calls under way, so that what they cost is settled, and close the teacher."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._teacher.close()


class UnansweredError(TeacherError):
    """The teacher answers, but not this prompt: what it said is no valid answer. The next prompt may have one."""
