"""Which partitions of its inputs one partition of a stage reads. Students differ in whom they learn from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from distill_dagster.config import StudentSpec, Task
from distill_dagster.config.student import reads_assistant
from distill_dagster.pipeline.stage_table import SOURCES, STAGES, Stage

_ASSISTANTS = ("assistant_adapter", "assistant_labels")


def list_input_partitions(
    task: Task, stage: Stage, upstream: Iterable[str], partition: str | None, slices: Sequence[str]
) -> dict[str, list[str | None]]:
    """The partitions that one partition of a stage reads, by the name of the input; [None] for one without partitions.

    - Only a student with a preference phase reads pairs, and only one that replays a dataset reads replayed rows.
    - A student that the task's teacher teaches reads the dataset.
    - An assistant was trained as `assistant_adapter`, so its `student_adapter` reads this one only.
    - A student of an assistant reads the labels of the assistant, and its predictions compare with the assistant. With
      an objective that reads the assistant's weights, it reads its adapter too.

    Args:
        upstream: the sources and stages that the stage reads in this task.
        slices: the keys of all slices.
    """
    names = list(upstream)
    student = task.students.get(partition or "") if stage.partition in ("student", "assistant") else None
    if student is not None and partition is not None:
        names = _select_for_student(task, stage, names, partition, student)
    return {name: _list_keys(stage, name, partition, slices, student) for name in names}


def _select_for_student(task: Task, stage: Stage, names: list[str], partition: str, student: StudentSpec) -> list[str]:
    unread = [] if student.has_preference_phase else ["preference_pairs"]
    unread += [] if student.data.replay else ["replay_rows"]
    names = [name for name in names if name not in unread]
    if stage.name == "student_adapter":
        if partition in task.list_assistants():
            return ["assistant_adapter"]
        other = ("filtered_dataset",) if student.assistant else _ASSISTANTS
        if not reads_assistant(student, task.resolve_objective(partition)):
            other = (*other, "assistant_adapter")
        return [name for name in names if name not in other]
    if stage.name == "predictions" and student.assistant is None:
        return [name for name in names if name not in _ASSISTANTS]
    return names


def _list_keys(
    stage: Stage, name: str, partition: str | None, slices: Sequence[str], student: StudentSpec | None
) -> list[str | None]:
    upstream = (SOURCES.get(name) or STAGES[name]).partition
    if upstream is None:
        return [None]
    if upstream == "slice":
        return [partition] if stage.partition == "slice" else list(slices)
    assistant = student.assistant if student is not None else None
    if assistant is not None and stage.name == "predictions" and name == "student_settings":
        return [partition, assistant]  # the assistant answers too
    return [assistant or partition] if upstream == "assistant" and stage.partition == "student" else [partition]


def list_stage_partitions(
    task: Task, stage: Stage, slices: Sequence[str], students: Collection[str] | None = None
) -> list[str | None]:
    """The partitions of a stage: [None], the slices, the students, or the assistants that these students need.

    Args:
        students: only what these students need; None for all students.
    """
    if stage.partition is None:
        return [None]
    if stage.partition == "slice":
        return list(slices)
    if stage.partition == "assistant":
        needed = task.list_assistants(students)
        own = stage.name == "assistant_adapter" and students is not None  # an assistant is trained before its report
        return [name for name in task.list_assistants() if name in needed or (own and name in (students or ()))]
    return [name for name in task.students if students is None or name in students]
