"""Answer one prompt: the student first, the teacher where the student's confidence is below the threshold."""

from __future__ import annotations

import asyncio
import json
import math
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from distill_dagster.core.errors import TeacherError
from distill_dagster.kinds import Kind, Question, read_answer
from distill_dagster.kinds.base import ANSWER_MARK
from distill_dagster.release.routing.table import ExportRouting, Route
from distill_dagster.release.runtimes.types import StudentAnswer
from distill_dagster.serving.batching import StudentBatcher
from distill_dagster.serving.metrics import ServerMetrics
from distill_dagster.serving.teacher import STOP_S, TeacherAnswer, TeacherGate
from distill_dagster.student.types import StudentPrompt

NO_TEACHER = ExportRouting(threshold=0.0, source="task.yaml")
"""The routing of a server without fallback: the student answers everything."""
ASKING_SHARE = 0.9
"""Share of a request's time after which its teacher is not waited for: the student's answer still has to be sent."""


@dataclass(frozen=True)
class ServedAnswer:
    """What a client gets.

    `answer` is a canonical JSON value of the kind, None if what the student wrote is no valid answer. `text` is what
    the message contains. `student` is the student's own answer, whoever answers the client. `teacher` is None if the
    teacher gave no answer; then `teacher_error` says why, if it was asked.
    """

    answer: Any
    text: str
    route: Route
    student: StudentAnswer
    student_value: Any
    finish_reason: str
    reasoning: str | None = None
    teacher: TeacherAnswer | None = None
    teacher_error: str | None = None
    shadowed: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Tokens that both models read for this answer."""
        return self.student.prompt_tokens + (self.teacher.prompt_tokens if self.teacher and not self.shadowed else 0)

    @property
    def completion_tokens(self) -> int:
        """Tokens that both models wrote for this answer."""
        theirs = self.teacher.completion_tokens if self.teacher and not self.shadowed else 0
        return self.student.completion_tokens + theirs


class Answerer:
    """Routes prompts between a student and its teacher, and shadows a random share of what the student keeps."""

    def __init__(
        self,
        batcher: StudentBatcher,
        kind: Kind,
        chooses_label: bool,
        metrics: ServerMetrics,
        routing: ExportRouting = NO_TEACHER,
        gate: TeacherGate | None = None,
        shadow_share: float = 0.0,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`gate` is None if the teacher is never asked. `chance` returns a random number from 0 to 1."""
        self.batcher, self.kind, self.chooses_label = batcher, kind, chooses_label
        self.routing = routing if gate is not None else NO_TEACHER
        self._metrics, self._gate, self._shadow_share, self._chance = metrics, gate, shadow_share, chance
        self._shadows: set[asyncio.Task[None]] = set()

    @property
    def can_stream(self) -> bool:
        """Whether pieces can be sent before the whole answer is known: no teacher may replace it."""
        return self.routing.threshold == 0 and not self.chooses_label

    async def answer(
        self, prompt: StudentPrompt, done: Callable[[ServedAnswer], None], timeout_s: float = math.inf
    ) -> ServedAnswer:
        """Answer a prompt. `done` gets the answer once it is final, for a shadowed request with the teacher's.

        Args:
            timeout_s: seconds after which the client gets an error. A teacher that is slower costs it no answer.

        Raises:
            RequestError: the student cannot answer.
        """
        until = time.monotonic() + ASKING_SHARE * timeout_s
        found = self.read_student_answer(prompt, await self.batcher.answer(prompt))
        if self.routing.choose_route(found.student.confidence) == "teacher":
            found = await self._ask_teacher(prompt, found, until - time.monotonic())
        return self._finish(prompt, found, done)

    async def stream(
        self, prompt: StudentPrompt, done: Callable[[ServedAnswer], None]
    ) -> AsyncIterator[str | ServedAnswer]:
        """The answer in pieces of the raw text, and at last the whole. Only if `can_stream`."""
        async with aclosing(self.batcher.stream(prompt)) as parts:  # type: ignore[type-var]
            async for part in parts:
                if isinstance(part, str):
                    yield part
                else:
                    yield self._finish(prompt, self.read_student_answer(prompt, part), done)

    def read_student_answer(self, prompt: StudentPrompt, given: StudentAnswer) -> ServedAnswer:
        """Read what the student wrote, as predictions are read."""
        if self.chooses_label:
            return ServedAnswer(given.answer, given.answer, "student", given, given.answer, given.finish_reason)
        question = Question(prompt.text)
        parsed = read_answer(self.kind, given.raw_text, question, stop=f"\n\n{self.kind.task.item}:")
        value = json.loads(parsed.answer) if parsed.answer is not None else None
        text = self.kind.format_answer(value) if value is not None else given.raw_text.removeprefix(ANSWER_MARK).strip()
        return ServedAnswer(value, text, "student", given, value, given.finish_reason, parsed.reasoning)

    async def _ask_teacher(self, prompt: StudentPrompt, found: ServedAnswer, within_s: float) -> ServedAnswer:
        """The teacher's answer in place of the student's; the student's if the teacher has none."""
        assert self._gate is not None
        try:
            teacher = await self._gate.answer(prompt, within_s)
        except TeacherError as error:
            self._metrics.teacher_failures.inc()
            return replace(found, teacher_error=str(error))
        text = self.kind.format_answer(teacher.answer)
        return replace(
            found,
            answer=teacher.answer,
            text=text,
            route="teacher",
            finish_reason="stop",
            reasoning=teacher.reasoning,
            teacher=teacher,
        )

    def _finish(self, prompt: StudentPrompt, found: ServedAnswer, done: Callable[[ServedAnswer], None]) -> ServedAnswer:
        """Count an answer, and shadow it if chance says so."""
        self._metrics.answers.labels(found.route).inc()
        self._metrics.tokens.labels("prompt").inc(found.student.prompt_tokens)
        self._metrics.tokens.labels("completion").inc(found.student.completion_tokens)
        if found.student.confidence is not None:
            self._metrics.confidence.observe(found.student.confidence)
        is_kept = found.route == "student" and found.teacher_error is None
        if self._gate is not None and is_kept and self._shadow_share and self._chance() < self._shadow_share:
            task = asyncio.create_task(self._shadow(self._gate, prompt, found, done))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)
        else:
            done(found)
        return found

    async def _shadow(
        self, gate: TeacherGate, prompt: StudentPrompt, found: ServedAnswer, done: Callable[[ServedAnswer], None]
    ) -> None:
        try:
            teacher = await gate.answer(prompt)
        except TeacherError as error:
            self._metrics.teacher_failures.inc()
            done(replace(found, teacher_error=str(error)))
            return
        except asyncio.CancelledError:  # the server stops
            done(found)
            raise
        agrees = found.answer is not None and self.kind.are_equal(found.answer, teacher.answer)
        self._metrics.disagreements.labels("yes" if agrees else "no").inc()
        done(replace(found, teacher=teacher, shadowed=True))

    async def stop(self) -> None:
        """Wait some seconds for the shadows under way, then end the batcher and the teacher."""
        if self._shadows:
            _, late = await asyncio.wait(self._shadows, timeout=STOP_S)
            for shadow in late:
                shadow.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        await self.batcher.stop()
        if self._gate is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._gate.close)
