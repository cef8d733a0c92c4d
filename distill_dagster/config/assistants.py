"""Check which students of a task can teach which others."""

from __future__ import annotations

from collections.abc import Mapping

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.config.objective import MATCHING_OBJECTIVES, REASONING_OBJECTIVES
from distill_dagster.config.student import StudentSpec


def check_assistant(name: str, students: Mapping[str, StudentSpec], kind: str, reasoning: bool) -> None:
    """Check that a student can learn from the answers of another one.

    Raises:
        ValueError: it cannot.
    """
    student = students[name]
    if student.assistant is None:
        return
    place = f"student {name!r} has `teacher: {student.teacher}`"
    others = [other for other, spec in students.items() if other != name and spec.assistant is None]
    known = f"Students that the task's teacher teaches: {', '.join(others) or 'none'}"
    assistant = students.get(student.assistant)
    if assistant is None:
        raise ValueError(f"{place}, and there is no such student. {known}")
    if assistant.assistant is not None:
        raise ValueError(f"{place}, which learns from a student itself. One student can be between. {known}")
    if student.data.replay is not None:
        raise ValueError(
            f"{place}; the teacher answered the rows of `data.replay`. Replay them for {student.assistant!r}"
        )
    has_labels = kind in LABEL_KINDS
    wanted, given = (spec.resolve_objective(has_labels, reasoning).kind for spec in (student, assistant))
    if wanted == "token_kd" and assistant.architecture != "causal_lm":
        raise ValueError(
            f"{place}, an encoder, which has no probabilities of tokens. objective token_kd needs a student with "
            f"`architecture: causal_lm`"
        )
    if wanted in MATCHING_OBJECTIVES and assistant.architecture != "encoder":
        raise ValueError(
            f"{place}, whose layers an encoder cannot imitate. objective {wanted} needs a student with "
            f"`architecture: encoder`"
        )
    if wanted in REASONING_OBJECTIVES and given != "reasoning":
        raise ValueError(
            f"{place} and learns its reasoning, which that student does not write. Give {student.assistant!r} "
            f"`objective: reasoning`, or {name!r} another objective"
        )
