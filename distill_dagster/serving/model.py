"""What a server serves, by name, and how its answers are logged."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from distill_dagster.config.base import SLICE_KEY_PATTERN
from distill_dagster.intake.request_log import LoggedRequest
from distill_dagster.kinds import Kind
from distill_dagster.serving.answering import ServedAnswer
from distill_dagster.student.types import StudentPrompt, TaskSettings
from distill_dagster.tables.messages import get_user_text


@dataclass(frozen=True)
class ServedModel:
    """What is served, by name."""

    task: str
    student: str
    release: int
    export: str
    kind: Kind
    chooses_label: bool
    released_at: int
    """Seconds since the epoch."""

    @property
    def names(self) -> list[str]:
        """The values of `model` that a client may send."""
        return [self.task, self.student, f"{self.task}/{self.student}"]

    @cached_property
    def tools(self) -> str | None:
        """The functions that the student was trained with, as a JSON list in OpenAI's form. None: there are none."""
        return TaskSettings.from_task(self.kind.task).tools

    @property
    def details(self) -> dict[str, Any]:
        """What every answer says about its model."""
        return {"student": self.student, "release": self.release, "export": self.export}

    def build_log_row(
        self, id_: str, at: datetime, prompt: StudentPrompt, slice_: Any, threshold: float | None, found: ServedAnswer
    ) -> LoggedRequest:
        """The row of one answer in the request log, not yet masked.

        Args:
            at: when the request came.
            slice_: what the client says about its slice; ignored unless it is a slice's key, since it is not masked.
        """
        turns = [{"role": turn["role"], "content": turn["content"]} for turn in prompt.messages]
        probs = found.student.label_probs
        return LoggedRequest(
            id=id_,
            at=at.isoformat(timespec="milliseconds"),
            text=get_user_text(prompt.messages),
            messages=turns if len(turns) > 1 else None,
            slice=slice_ if isinstance(slice_, str) and SLICE_KEY_PATTERN.fullmatch(slice_) else None,
            **self.details,
            answer=found.answer,
            route=found.route,
            confidence=found.student.confidence,
            threshold=threshold,
            student_answer=found.student_value,
            teacher_answer=found.teacher.answer if found.teacher else None,
            shadowed=found.shadowed,
            label_probs={label: round(prob, 5) for label, prob in probs.items()} if probs is not None else None,
        )
