"""Whether the current release is older than what is there now."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.release.registry import Registry


@dataclass(frozen=True)
class ReleaseStatus:
    """The current release of a task. `why` names what changed since it was made; it is empty if nothing did.

    `is_current`: it was made from what is there now.
    """

    number: int
    student: str
    is_current: bool
    why: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The status for `--json`."""
        return asdict(self) | {"why": list(self.why)}


def find_release_status(state: TaskState, registry: Registry) -> ReleaseStatus | None:
    """Compare the current release with what is there now. None if nothing was released.

    Raises:
        DistillError: the pointer or the manifest of the release cannot be read.
    """
    task = state.folder.name
    number = registry.read_current_number(task)
    if number is None:
        return None
    student = registry.read(task, number).student
    if student not in state.students:
        return ReleaseStatus(number, student, False, (f"task.yaml has no student {student} any more",))
    # The release was made from the report in the lake, which may be older than the files itself.
    report = state.get_status("eval_report", student)
    if report.state != "fresh":
        return ReleaseStatus(number, student, False, (f"{report.name} is {report.state}",))
    status = state.get_status("release", student)
    newest = status.record.extra["number"] if status.record is not None else None
    if newest != number:
        why = "another release was made later" if newest is not None else "it was made in another lake"
        return ReleaseStatus(number, student, False, (why,))
    return ReleaseStatus(number, student, status.state == "fresh", status.why)
