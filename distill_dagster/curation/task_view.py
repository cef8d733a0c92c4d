"""The parts of a task that filters and scorers read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_dagster.config.inbox import DEFAULT_PHONE_REGIONS
from distill_dagster.kinds import get_kind

if TYPE_CHECKING:
    from distill_dagster.config import Task
    from distill_dagster.kinds import Kind

FREE_TEXT_KINDS = ("summarization", "conversation", "generation")


@dataclass(frozen=True)
class TaskView:
    """The settings of a task on which filters and scorers depend.

    Args:
        kind: such as `classification`.
        labels: the names of the labels; empty for a kind without labels.
        reasoning: whether the teacher gives its reasoning before the answer.
        matcher: compares and formats answers. Without one, answers are labels.
        phone_regions: countries (`US`, `DE`) whose national phone numbers are recognised.
    """

    kind: str = "classification"
    labels: tuple[str, ...] = ()
    reasoning: bool = False
    matcher: Kind | None = None
    phone_regions: tuple[str, ...] = DEFAULT_PHONE_REGIONS

    @classmethod
    def from_task(cls, task: Task) -> TaskView:
        labels, regions = tuple(task.label_names), tuple(task.inbox.phone_regions)
        return cls(task.kind, labels, task.reasoning, get_kind(task), regions)
