"""The teacher gate: what it compares, and its check."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import EvaluationSpec, GateSpec
from distill_dagster.evaluation.gate import GateScores, build_gate_check, compute_gate_scores
from distill_dagster.evaluation.statistics import Interval
from distill_dagster.kinds import get_kind
from distill_dagster.tables.schemas import PREDICTIONS, build_frame
from tests.support.kinds import build_task


def rows(system: str, right: int, items: int = 10) -> list[dict[str, Any]]:
    """The first `right` items have the right answer, the last item has none."""
    labels = ["refund" if n < right else "delivery" for n in range(items)]
    answers = [json.dumps(answer) if n < items - 1 else None for n, answer in enumerate(labels)]
    empty = dict.fromkeys(PREDICTIONS)
    return [
        empty | {"system": system, "item_id": f"d{n}", "split": "dev", "reference": '"refund"', "answer": answer}
        for n, answer in enumerate(answers)
    ]


def scores(*systems: tuple[str, int]) -> GateScores:
    frame: pl.DataFrame = build_frame([r for s in systems for r in rows(*s)], PREDICTIONS, ("system", "item_id"))
    return compute_gate_scores(get_kind(build_task("classification")), frame, EvaluationSpec())


def test_scores_of_both_and_their_paired_difference() -> None:
    found = scores(("teacher", 8), ("base", 5))
    assert found.metric == "accuracy"
    assert found.teacher.value == 0.8
    assert found.base is not None
    assert found.base.value == 0.5
    assert found.difference is not None
    assert found.difference.value == pytest.approx(0.3)
    # Base is right only where the teacher is: the difference cannot be negative in any sample.
    assert found.difference.low is not None
    assert found.difference.low >= 0
    assert found.teacher.low is not None
    assert found.teacher.high is not None
    assert found.teacher.low < 0.8 < found.teacher.high


def test_a_teacher_alone_has_no_difference() -> None:
    found = scores(("teacher", 8))
    assert (found.base, found.difference) == (None, None)
    assert build_gate_check(found, GateSpec(), 10, 10).passed


@pytest.mark.parametrize(
    ("gate", "systems", "passes", "why"),
    [
        (GateSpec(), (("teacher", 5), ("base", 5)), True, None),
        (GateSpec(), (("teacher", 4), ("base", 5)), False, "nothing to distil"),
        (GateSpec(teacher_over_base=0.3), (("teacher", 8), ("base", 5)), True, None),
        (GateSpec(teacher_over_base=0.31), (("teacher", 8), ("base", 5)), False, "gate.teacher_over_base is 0.31"),
        (GateSpec(teacher_over_base=-0.1), (("teacher", 4), ("base", 5)), True, None),
        (GateSpec(teacher_min=0.8), (("teacher", 8), ("base", 5)), True, None),
        (GateSpec(teacher_min=0.81), (("teacher", 8), ("base", 5)), False, "gate.teacher_min is 0.81"),
    ],
)
def test_what_passes(gate: GateSpec, systems: tuple[tuple[str, int], ...], passes: bool, why: str | None) -> None:
    check = build_gate_check(scores(*systems), gate, 10, 10)
    assert (check.passed, check.severity) == (passes, "error")
    assert ("why" in check.details) is not passes
    if why is not None:
        assert why in check.details["why"]
        assert "task.yaml" in check.details["why"]


def test_too_few_answers_do_not_pass() -> None:
    found = scores(("teacher", 10))
    assert not build_gate_check(found, GateSpec(), 4, 10).passed
    assert build_gate_check(found, GateSpec(), 5, 10).passed
    assert build_gate_check(found, GateSpec(), 4, 10, recorded=True).passed, "a recording costs nothing"
    assert not build_gate_check(GateScores("accuracy", Interval(None)), GateSpec(), 0, 10).passed


def test_settings_that_change_the_answers_of_the_base_change_the_gate() -> None:
    def gate_hash(**student: Any) -> str:
        one = {"model": "smollm2-135m-instruct", "architecture": "causal_lm"} | student
        return build_task("classification", reasoning=True, students={"tiny": one}).hash_gate_settings()

    plain = gate_hash()
    assert gate_hash(epochs=7) == plain
    assert gate_hash(reasoning=True) != plain
    assert gate_hash(max_tokens=64) != plain
