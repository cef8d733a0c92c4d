"""What filters and scorers know of a task: its kind and what its answers may be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_dagster.kinds import kind_of

if TYPE_CHECKING:
    from distill_dagster.config import Task
    from distill_dagster.kinds import Kind

LABELLED = ("classification", "nli")
TEXTUAL = ("summarization", "conversation", "generation")


@dataclass(frozen=True)
class About:
    """A task as filters see it. `matcher` compares and writes answers; without one they are labels."""

    kind: str = "classification"
    labels: tuple[str, ...] = ()
    reasoning: bool = False
    matcher: Kind | None = None

    @classmethod
    def of(cls, task: Task) -> About:
        return cls(task.kind, tuple(task.label_names), task.reasoning, kind_of(task))
