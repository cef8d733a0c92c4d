"""Check which students of a task can teach which others."""

from __future__ import annotations

from collections.abc import Mapping

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.config.objective import MATCHING_OBJECTIVES, REASONING_OBJECTIVES, Objective, writes_reasoning
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
    if student.assistant == name:
        raise ValueError(f"{place}: a student cannot teach itself. {known}")
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
    objectives = [spec.resolve_objective(has_labels, reasoning) for spec in (student, assistant)]
    wanted, given = (objective.kind for objective in objectives)
    if wanted == "token_kd" and assistant.architecture != "causal_lm":
        raise ValueError(
            f"{place}, an encoder, which has no probabilities of tokens. objective token_kd needs a student with "
            f"`architecture: causal_lm`"
        )
    if student.starts_trained:
        same = ("model", "revision", "architecture", "shrink", "quantization")
        deep = student.model_copy(update={"shrink": None, "quantization": "none"})
        if other := [field for field in same if getattr(assistant, field) != getattr(deep, field)]:
            raise ValueError(
                f"{place} and `shrink.start: teacher`, so it begins with layers of {student.assistant!r}, and "
                f"they differ in {' and '.join(f'`{field}`' for field in other)}. Give both the same `model`, and "
                f"{student.assistant!r} neither `shrink` nor `method: qlora`"
            )
    if objectives[0].kind == "token_kd":
        _check_written(place, name, student.assistant, objectives, has_labels, reasoning)
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


def _check_written(
    place: str, name: str, assistant: str, objectives: list[Objective], has_labels: bool, reasoning: bool
) -> None:
    """Check that a student of token_kd and the one that teaches it both write reasoning, or neither.

    Raises:
        ValueError: one of them does. Then the student would learn behind another prompt than it is asked with.
    """
    own, others = (writes_reasoning(objective, has_labels, reasoning) for objective in objectives)
    if own and not others:
        raise ValueError(
            f"{place}, which writes its answers without reasoning. With objective token_kd, {name!r} writes reasoning "
            f"as the task's teacher does. Give {assistant!r} `objective: reasoning`, or {name!r} `objective: answer`"
        )
    if others and not own and getattr(objectives[0], "teacher", None) is None:
        raise ValueError(
            f"{place}, which writes reasoning before its label, so its probabilities of a label alone are not what it "
            f"learned. Give {assistant!r} `objective: soft_label`, or {name!r} `objective: answer`"
        )
