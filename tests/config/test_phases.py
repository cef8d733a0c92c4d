"""`then` of a student: what is refused, and what makes a student train again."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.kinds import build_task

CAUSAL: dict[str, Any] = {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}
ON_POLICY = {"kind": "on_policy", "teacher": "smollm2-135m-instruct"}


def build(kind: str, student: dict[str, Any], reasoning: bool = True) -> Any:
    return build_task(kind, reasoning=reasoning, students={"tiny": student}).students["tiny"]


def test_phases_have_settings_of_their_own_kind() -> None:
    student = build("math", CAUSAL | {"then": [{"kind": "preference", "beta": 0.2}, ON_POLICY]})
    assert [phase.kind for phase in student.then] == ["preference", "on_policy"]
    assert student.has_preference_phase
    assert not build("math", CAUSAL | {"then": [ON_POLICY]}).has_preference_phase
    with pytest.raises(ValidationError, match=r"then\.0\.on_policy\.beta\n.*not permitted"):
        build("math", CAUSAL | {"then": [ON_POLICY | {"beta": 0.2}]})
    with pytest.raises(ValidationError, match=r"then\.0.*\n.*'preference', 'on_policy'"):
        build("math", CAUSAL | {"then": [{"kind": "rlhf"}]})


@pytest.mark.parametrize("phase", [{"kind": "preference"}, ON_POLICY])
def test_an_encoder_has_no_phases(phase: dict[str, Any]) -> None:
    encoder = {"model": "all-minilm-l6-v2", "architecture": "encoder", "then": [phase]}
    with pytest.raises(ValidationError, match=f"phase {phase['kind']} needs a language model.*Leave `then` out"):
        build("classification", encoder)


def test_a_student_that_chooses_a_label_samples_nothing() -> None:
    with pytest.raises(ValidationError, match="this student chooses a label"):
        build("classification", CAUSAL | {"then": [ON_POLICY]})
    build("classification", CAUSAL | {"then": [ON_POLICY], "objective": "reasoning"})
    build("classification", CAUSAL | {"then": [{"kind": "preference"}]})


def test_a_phase_trains_the_student_again() -> None:
    def hash_settings(then: list[dict[str, Any]]) -> str:
        task = build_task("math", students={"tiny": CAUSAL | {"then": then}})
        return str(task.hash_student_settings("tiny"))

    first = {"kind": "preference"}
    assert hash_settings([]) != hash_settings([first]) != hash_settings([first | {"beta": 0.2}])
