"""What filters and scorers know of a task: its kind and what its answers may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_dagster.kinds import get_kind

if TYPE_CHECKING:
    from distill_dagster.config import Task
    from distill_dagster.kinds import Kind

LABEL_KINDS = ("classification", "nli")
FREE_TEXT_KINDS = ("summarization", "conversation", "generation")


@dataclass(frozen=True)
class TaskView:
    """A task as filters see it. `matcher` compares and writes answers; without one they are labels."""

    kind: str = "classification"
    labels: tuple[str, ...] = ()
    reasoning: bool = False
    matcher: Kind | None = None

    @classmethod
    def of(cls, task: Task) -> TaskView:
        return cls(task.kind, tuple(task.label_names), task.reasoning, get_kind(task))
