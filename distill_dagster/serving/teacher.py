"""Ask the teacher where the student is unsure, and do not ask it for a while after it failed."""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from distill_dagster.config import InboxSpec
from distill_dagster.core.errors import TeacherError
from distill_dagster.core.redaction import redact
from distill_dagster.intake.masking import mask_text
from distill_dagster.student.types import StudentPrompt

PAUSE_S = 10.0
"""Seconds without requests after the teacher failed. The student answers meanwhile, without waiting for a timeout."""
STOP_S = 5.0
"""Seconds that the calls under way have to end after the server is asked to stop."""
WIDTH = 8
"""How many prompts the teacher is asked at the same time."""
MAX_REASON_CHARS = 300
logger = logging.getLogger("distill.serving")


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
    """Asks a teacher with a timeout, and pauses after a failure. After a pause one prompt tries it, alone."""

    def __init__(self, teacher: Teacher, timeout_s: float) -> None:
        self._teacher, self._timeout_s = teacher, timeout_s
        self._slots = asyncio.Semaphore(WIDTH)
        self._calls: set[threading.Thread] = set()
        self._paused_until = 0.0
        self._reason = ""
        """Why the teacher failed last. Empty if it has answered since."""
        self._is_trying = False

    async def answer(self, prompt: StudentPrompt, within_s: float = math.inf) -> TeacherAnswer:
        """The teacher's answer. A call that takes too long goes on, and its answer is in the store for the next time.

        Args:
            within_s: seconds after which nobody waits for the answer, if they are fewer than the gate's own.

        Raises:
            TeacherError: there is no answer in time, or the teacher has just failed.
        """
        if within_s <= 0:
            raise TeacherError("there is no time left to ask the teacher")
        if self._reason and (self._is_trying or time.monotonic() < self._paused_until):
            raise TeacherError(f"the teacher is not asked for some seconds, since it failed: {self._reason}")
        tries, within_s = bool(self._reason), min(within_s, self._timeout_s)
        self._is_trying |= tries
        try:
            async with asyncio.timeout(within_s):
                await self._slots.acquire()
                answer = await asyncio.shield(self._start_call(prompt))
        except TimeoutError:
            self._pause(f"no answer within {within_s:.3g} s")
            raise TeacherError(f"the teacher gave {self._reason}") from None
        except UnansweredError:
            self._reason = ""
            raise
        except TeacherError as error:
            self._pause(str(error))
            raise
        finally:
            self._is_trying &= not tries
        self._reason = ""
        return answer

    def _start_call(self, prompt: StudentPrompt) -> asyncio.Future[TeacherAnswer]:
        """Ask in a thread that does not keep the process alive. It gives back its slot when it ends."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[TeacherAnswer] = loop.create_future()
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # perhaps nobody waits for it

        def finish(answer: TeacherAnswer | None, error: BaseException | None) -> None:
            self._slots.release()
            if done.done():
                return
            if answer is not None:
                done.set_result(answer)
            else:
                done.set_exception(error or TeacherError("the teacher gave no answer"))

        def call() -> None:
            answer, problem = None, None
            try:
                answer = self._teacher.answer(prompt)
            except TeacherError as error:
                problem = error
            except Exception as error:
                problem = TeacherError(f"{type(error).__name__}: {error}")
            self._calls.discard(thread)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(finish, answer, problem)

        thread = threading.Thread(target=call, name="fallback", daemon=True)
        self._calls.add(thread)
        thread.start()
        return done

    def _pause(self, reason: str) -> None:
        if reason != self._reason:
            # A provider's error may repeat the prompt.
            shown = mask_text(redact(reason[:2000]), InboxSpec().phone_regions).text[:MAX_REASON_CHARS]
            logger.warning("the teacher fails, so the student answers in its place: %s", shown)
        self._paused_until, self._reason = time.monotonic() + PAUSE_S, reason

    def close(self) -> None:
        """Wait some seconds for the calls under way, then close the teacher.

        What a call costs that takes longer counts in full: the ledger settles the requests of a process that has ended.
        """
        deadline = time.monotonic() + STOP_S
        for thread in list(self._calls):
            thread.join(max(0.0, deadline - time.monotonic()))
        self._teacher.close()


class UnansweredError(TeacherError):
    """The teacher answers, but not this prompt: what it said is no valid answer. The next prompt may have one."""
