"""`objective` of a student: its forms, its defaults, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from distill_dagster.config.objective import SHORT_FORMS, Objective
from distill_dagster.config.student import RUN_SETTINGS
from distill_dagster.core.hashing import hash_content
from distill_dagster.pipeline.task_check import check_task_folder
from tests.support.kinds import build_task
from tests.support.task import write_small_task

ENCODER = {"model": "all-minilm-l6-v2", "architecture": "encoder"}
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


def test_settings_that_are_as_before_they_existed_train_nothing_again() -> None:
    def hash_settings(**changes: Any) -> tuple[str, str]:
        task = build_task(
            "classification", students={"tiny": ENCODER | changes, "large": ENCODER}, gate={"teacher_over_base": 0.0}
        )
        return task.hash_student_settings("tiny"), task.hash_gate_settings()

    task = build_task("classification", students={"tiny": ENCODER | {"shrink": {"layers": 3}}})
    settings = task.students["tiny"].model_dump(exclude={*SHORT_FORMS, *RUN_SETTINGS, "layer_decay"})
    settings |= {"objective": task.resolve_objective("tiny").model_dump(), "shrink": {"layers": 3}}
    before = hash_content(task.dump_prompt_settings() | {"student": settings})
    shrunk = hash_settings(shrink={"layers": 3})
    assert shrunk[0] == before
    assert hash_settings(shrink={"layers": 3, "start": "model"}, layer_decay=1) == shrunk
    taught = {"teacher": "student:large", "method": "full"}
    started = taught | {"shrink": {"layers": 3, "start": "teacher"}}
    assert hash_settings(shrink={"layers": 3}, layer_decay=0.5)[0] != before
    assert hash_settings(**started)[0] != hash_settings(**taught, shrink={"layers": 3})[0]
    assert hash_settings(**started)[1] == shrunk[1], "the base has the layers that were downloaded"


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
        ("nli", False, {"objective": "token_kd", "architecture": "encoder"}, "an encoder writes nothing"),
        ("nli", False, {"objective": "hidden_state"}, "it needs `architecture: encoder`"),
        ("nli", False, {"objective": "answer", "soft_weight": 0}, "its older form `soft_weight` are both given"),
        ("nli", True, {"objective": "reasoning", "reasoning": True}, "its older form `reasoning` are both given"),
    ],
)
def test_what_a_student_cannot_learn(kind: str, reasoning: bool, student: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        resolve(kind, reasoning, student)


def test_the_mistakes_of_all_students_are_found_at_once() -> None:
    students = {"a": ENCODER | {"objective": "reasoning"}, "b": ENCODER, "c": ENCODER | {"teacher": "student:d"}}
    with pytest.raises(ValidationError) as caught:
        build_task("classification", students=students, default_student="e")
    assert [error["loc"] for error in caught.value.errors()] == [
        ("students", "a"),
        ("students", "c"),
        ("default_student",),
    ]


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


TOKEN_KD = {"objective": "token_kd", "teacher": "student:big"}
WITH_MODEL = {"objective": {"kind": "token_kd", "teacher": "smollm2-135m-instruct"}, "teacher": "student:big"}


@pytest.mark.parametrize(
    ("kind", "small", "big", "remedy"),
    [
        ("math", TOKEN_KD, "answer", "Give 'big' `objective: reasoning`, or 'small' `objective: answer`"),
        ("math", TOKEN_KD, "multitask", "Give 'big' `objective: reasoning`, or 'small' `objective: answer`"),
        ("math", WITH_MODEL, "answer", "Give 'big' `objective: reasoning`, or 'small' `objective: answer`"),
        ("math", TOKEN_KD, "reasoning", None),
        ("math", TOKEN_KD, None, None),
        ("nli", TOKEN_KD, "reasoning", "Give 'big' `objective: soft_label`, or 'small' `objective: answer`"),
        ("nli", TOKEN_KD, "multitask", None),
        ("nli", TOKEN_KD, "soft_label", None),
        ("nli", WITH_MODEL, "reasoning", None),
    ],
)
def test_a_student_of_token_kd_writes_what_the_one_that_teaches_it_writes(
    kind: str, small: dict[str, Any], big: str | None, remedy: str | None
) -> None:
    students = {"small": CAUSAL | small, "big": CAUSAL | {"objective": big}}
    if remedy is None:
        build_task(kind, reasoning=True, students=students)
        return
    with pytest.raises(ValidationError) as raised:
        build_task(kind, reasoning=True, students=students)
    assert remedy in str(raised.value)


ENCODER = {"model": "all-minilm-l6-v2", "architecture": "encoder"}


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (ENCODER | {"prompt": "plain"}, "reads the text alone. Leave out `prompt: plain`"),
        (ENCODER | {"answer_tokens": 256}, "so `answer_tokens` would change nothing. Leave it out"),
        (CAUSAL | {"answer_tokens": 16, "max_cut_targets": 0}, "so `answer_tokens` and `max_cut_targets` would change"),
        (CAUSAL | {"preset": "smollm2", "answer_tokens": 16}, "so `answer_tokens` would change nothing"),
        (CAUSAL | {"objective": {"kind": "token_kd", "revision": "main"}} | {"teacher": "student:other"}, "revision"),
        (ENCODER | {"prompt": "auto"}, None),
        (CAUSAL | {"objective": "multitask", "answer_tokens": 16}, None),
        (CAUSAL | {"objective": "reasoning", "answer_tokens": 16, "max_cut_targets": 0.1}, None),
        ({"preset": "smollm2"}, None),
    ],
)
def test_settings_without_effect_are_refused(student: dict[str, Any], message: str | None) -> None:
    def build() -> None:
        build_task("nli", reasoning=True, students={"tiny": student, "other": CAUSAL})

    if message is None:
        build()
        return
    with pytest.raises(ValidationError) as raised:
        build()
    assert message in str(raised.value)


def test_settings_without_effect_are_found_in_their_file(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, students={"tiny": {"answer_tokens": 16}})
    [problem] = check_task_folder(folder)
    assert problem.line is not None
    assert (problem.field or "").startswith("students")
    assert "`answer_tokens` would change nothing" in problem.message
