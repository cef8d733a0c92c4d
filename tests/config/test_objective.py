"""`objective` of a student: its forms, its defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distill_dagster.config.objective import Objective
from distill_dagster.pipeline.task_check import check_task_folder
from tests.support.kinds import build_task
from tests.support.task import write_small_task

CAUSAL = {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}


def resolve(kind: str, task_reasoning: bool, student: dict[str, Any]) -> Objective:
    return build_task(kind, reasoning=task_reasoning, students={"tiny": CAUSAL | student}).resolve_objective("tiny")


@pytest.mark.parametrize(
    ("kind", "reasoning", "student", "expected"),
    [
        ("classification", False, {}, {"kind": "soft_label", "weight": 0.5, "temperature": 1.0}),
        ("classification", True, {}, {"kind": "soft_label", "weight": 0.5, "temperature": 1.0}),
        ("classification", False, {"soft_weight": 0}, {"kind": "answer"}),
        (
            "classification",
            False,
            {"soft_weight": 1, "temperature": 2},
            {"kind": "soft_label", "weight": 1, "temperature": 2},
        ),
        ("classification", True, {"reasoning": True}, {"kind": "reasoning"}),
        ("classification", False, {"objective": "answer"}, {"kind": "answer"}),
        ("math", False, {}, {"kind": "answer"}),
        ("math", True, {}, {"kind": "reasoning"}),
        ("math", True, {"objective": "answer"}, {"kind": "answer"}),
        ("math", True, {"soft_weight": 0.5}, {"kind": "reasoning"}),
    ],
)
def test_defaults_and_older_forms(
    kind: str, reasoning: bool, student: dict[str, Any], expected: dict[str, Any]
) -> None:
    found = resolve(kind, reasoning, student)
    assert found.model_dump(include=set(expected)) == expected


def test_two_forms_of_one_objective_train_the_same_student() -> None:
    """So a rewritten task.yaml trains nothing again."""
    forms: list[dict[str, Any]] = [
        {},
        {"objective": "soft_label"},
        {"soft_weight": 0.5},
        {"objective": {"kind": "soft_label", "weight": 0.5, "temperature": 1}},
    ]
    tasks = [build_task("classification", students={"tiny": CAUSAL | form}) for form in forms]
    assert len({task.hash_student_settings("tiny") for task in tasks}) == 1
    other = build_task("classification", students={"tiny": CAUSAL | {"objective": "answer"}})
    assert other.hash_student_settings("tiny") != tasks[0].hash_student_settings("tiny")


@pytest.mark.parametrize(
    ("kind", "reasoning", "student", "message"),
    [
        ("math", False, {"objective": "soft_label"}, "for kinds with labels"),
        ("nli", False, {"objective": "reasoning"}, "set `reasoning: true` for the task"),
        ("nli", True, {"objective": "reasoning", "architecture": "encoder"}, "an encoder writes nothing"),
        ("math", False, {"objective": "multitask"}, "set `reasoning: true` for the task"),
        ("nli", True, {"objective": "multitask", "architecture": "encoder"}, "an encoder writes nothing"),
        ("math", False, {"objective": "token_kd"}, "Set `objective.teacher` to a local model"),
        (
            "nli",
            True,
            {"objective": {"kind": "token_kd", "teacher": "m"}, "architecture": "encoder"},
            "an encoder writes nothing",
        ),
        ("nli", False, {"objective": "answer", "soft_weight": 0}, "its older form `soft_weight` are both given"),
        ("nli", True, {"objective": "reasoning", "reasoning": True}, "its older form `reasoning` are both given"),
    ],
)
def test_what_a_student_cannot_learn(kind: str, reasoning: bool, student: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        resolve(kind, reasoning, student)


@pytest.mark.parametrize(
    ("objective", "field", "message", "remedy"),
    [
        ("softlabel", "students.tiny.objective", "kind 'softlabel' is not one of 'answer', ", "task-yaml.md"),
        ({"weight": 1}, "students.tiny.objective", "`kind` is missing", "task-yaml.md"),
        ({"kind": "soft_label", "wieght": 1}, "students.tiny.objective.wieght", "unknown field", "'weight'"),
        ({"kind": "answer", "weight": 1}, "students.tiny.objective.weight", "unknown field", "one of: kind"),
        (
            {"kind": "soft_label", "weight": 0},
            "students.tiny.objective.weight",
            "should be greater than 0 (found '0')",
            "task-yaml.md",
        ),
    ],
)
def test_mistakes_name_their_field(tmp_path: Path, objective: Any, field: str, message: str, remedy: str) -> None:
    folder = write_small_task(tmp_path, students={"tiny": {"objective": objective}})
    [problem] = check_task_folder(folder)
    assert problem.field == field
    assert message in problem.message
    assert remedy in problem.remedy
    assert problem.line is not None
