"""The gate before a release: what each check sees, what it says, and what passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import EvaluationSpec, ReleaseGateSpec
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.evaluation.metrics import compute_metrics
from distill_dagster.kinds import get_kind
from distill_dagster.kinds.refusals import REFUSAL_KEY
from distill_dagster.release.gate import (
    GATE_CHECKS,
    explain_failures,
    iter_gate_lines,
    list_golden_scores,
    run_release_gate,
)
from distill_dagster.release.golden_scores import read_golden_scores
from distill_dagster.tables.schemas import PREDICTIONS, build_frame
from tests.support.kinds import build_task

KIND = get_kind(build_task("classification"))
SPEC = EvaluationSpec(bootstrap_samples=500)
ALL_OFF = ReleaseGateSpec(retention=None, calibration=None, readable=None, no_regression=False)


def system(name: str, right: str, confidence: float | None = 0.9, slices: str = "", split: str = "golden") -> Any:
    """One row for each mark: 1 is right, 0 wrong, - not readable. `slices` has a letter for each row."""
    for number, mark in enumerate(right):
        reference = ("refund", "delivery")[number % 2]
        answer = {"1": reference, "0": ("delivery", "refund")[number % 2], "-": None}[mark]
        yield dict.fromkeys(PREDICTIONS) | {
            "system": name,
            "item_id": f"g{number:03}",
            "split": split,
            "slice": slices[number] if slices else "a",
            "reference": json.dumps(reference),
            "answer": None if answer is None else json.dumps(answer),
            "confidence": confidence,
            "correct": mark == "1",
        }


def table(*systems: Any) -> pl.DataFrame:
    return build_frame([row for rows in systems for row in rows], PREDICTIONS, ("system", "split", "item_id"))


def gate(name: str, frame: pl.DataFrame, current: Any = None, **settings: Any) -> CheckResult:
    spec = ALL_OFF.model_copy(update=settings)
    checks = run_release_gate(KIND, frame, spec, SPEC, current)
    assert [check.name for check in checks] == [check.name for check in GATE_CHECKS]
    others = [check for check in checks if check.name != name]
    assert all(check.passed and "not_checked" in check.details for check in others)
    return next(check for check in checks if check.name == name)


def test_retention_is_that_of_the_report_and_its_lower_end_decides() -> None:
    frame = table(system("teacher", "1" * 100), system("distilled", "1" * 90 + "0" * 10), system("base", "0" * 100))
    kept = compute_metrics(frame, {}, ["refund", "delivery"], SPEC, KIND).golden.retention
    assert kept.low is not None
    assert kept.low < 0.88 < 0.9
    found = gate("keeps_teacher_score", frame, retention=0.88)
    assert not found.passed
    assert found.details["low"] == round(kept.low, 4)
    assert "keeps 0.900 of the teacher's score" in found.details["why"]
    # What it says would pass does pass.
    named = float(found.details["would_pass"].rpartition("retention: ")[2])
    assert gate("keeps_teacher_score", frame, retention=named).passed


def test_a_student_without_a_teacher_to_compare_with_is_not_released() -> None:
    found = gate("keeps_teacher_score", table(system("distilled", "1111")), retention=0.5)
    assert "release.gate.retention to null" in found.details["would_pass"]


def test_one_bad_slice_is_named_and_small_slices_do_not_count() -> None:
    marks, slices = "1" * 20 + "1" * 8 + "0" * 12 + "0" * 3, "a" * 20 + "b" * 20 + "c" * 3
    frame = table(system("distilled", marks, slices=slices))
    found = gate("every_slice_good_enough", frame, slice_floor=0.6)
    assert "b 0.400 (20 rows)" in found.details["why"]
    assert found.details["slices_with_too_few_rows"] == 1
    assert gate("every_slice_good_enough", frame, slice_floor=0.4).passed
    assert not gate("every_slice_good_enough", frame, slice_floor=0.4, slice_items=3).passed


def test_overconfidence_fails_unless_it_may_be_chance() -> None:
    sure = table(system("distilled", "1" * 60 + "0" * 40, confidence=0.95))
    found = gate("confidences_calibrated", sure, calibration=0.1)
    assert "states 0.950 on average and is right on 0.600" in found.details["why"]
    assert gate("confidences_calibrated", sure, calibration=0.4).passed
    assert gate("confidences_calibrated", table(system("distilled", "1101", 0.9)), calibration=0.1).passed
    silent = gate("confidences_calibrated", table(system("distilled", "10", None)), calibration=0.0)
    assert silent.details == {"not_checked": "the student states no confidence"}


def test_answers_that_cannot_be_read_are_counted() -> None:
    frame = table(system("distilled", "1" * 95 + "-" * 5))
    found = gate("answers_readable", frame, readable=0.98)
    assert "5 answers of 100 cannot be read (g095" in found.details["why"]
    assert gate("answers_readable", frame, readable=0.95).passed


def test_the_safety_slice_has_its_own_share() -> None:
    frame = table(system("distilled", "1" * 90 + "1" * 8 + "0" * 2, slices="a" * 90 + "s" * 10))
    found = gate("safety_slice_right", frame, safety_slice="s", safety=0.95)
    assert "gets wrong 2 of 10 rows of s (g098, g099)" in found.details["why"]
    assert gate("safety_slice_right", frame, safety_slice="s", safety=0.8).passed
    assert "add such rows" in gate("safety_slice_right", frame, safety_slice="t").details["would_pass"]


def test_a_writing_student_must_refuse_where_the_reference_does() -> None:
    kind, refusal = get_kind(build_task("generation")), {REFUSAL_KEY: "I cannot help with that."}
    rows = [
        dict.fromkeys(PREDICTIONS)
        | {
            "system": "distilled",
            "item_id": f"g{n}",
            "split": "golden",
            "slice": "s",
            "reference": json.dumps(reference),
        }
        | {"answer": json.dumps(answer), "correct": kind.are_equal(answer, reference)}
        for n, (reference, answer) in enumerate([(refusal, refusal), (refusal, "Sure: …"), ("Fine.", "Fine.")])
    ]
    spec = ALL_OFF.model_copy(update={"safety_slice": "s", "safety": 0.9})
    checks = run_release_gate(kind, build_frame(rows, PREDICTIONS, ("item_id",)), spec, SPEC)
    found = next(check for check in checks if check.name == "safety_slice_right")
    assert "does not refuse 1 of 2 rows of s (g1)" in found.details["why"]


def test_a_clear_regression_fails_and_noise_does_not() -> None:
    before = list_golden_scores(KIND, table(system("distilled", "1" * 95 + "0" * 5)))
    worse = table(system("distilled", "0" * 20 + "1" * 75 + "0" * 5))
    found = gate("not_worse_than_current", worse, before, no_regression=True)
    assert "-0.200 against the current release: 20 worse, 0 better" in found.details["why"]
    noise = table(system("distilled", "0" * 3 + "1" * 92 + "01011"))
    assert gate("not_worse_than_current", noise, before, no_regression=True).passed
    first = gate("not_worse_than_current", worse, None, no_regression=True)
    assert first.details == {"not_checked": "nothing was released before"}


def test_damaged_scores_of_the_current_release_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DistillError, match=r"golden\.json cannot be read.*--use N.*no_regression to false"):
        read_golden_scores(tmp_path)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "golden.json").write_text("[1]")
    with pytest.raises(DistillError, match="cannot be read"):
        read_golden_scores(tmp_path)


def test_an_item_with_another_reference_is_not_compared() -> None:
    frame = table(system("distilled", "1" * 20))
    before = list_golden_scores(KIND, frame)
    changed = frame.with_columns(reference=pl.lit('"refund"'), answer=pl.lit('"delivery"'), correct=False)
    found = gate("not_worse_than_current", changed, before, no_regression=True)
    assert found.details["items"] == 10


def test_all_failures_are_one_message_and_the_lines_show_every_check() -> None:
    frame = table(system("teacher", "1" * 40), system("distilled", "1" * 20 + "0" * 10 + "-" * 10))
    checks = run_release_gate(KIND, frame, ReleaseGateSpec(), SPEC)
    assert [check.name for check in checks if not check.passed] == [
        "keeps_teacher_score",
        "confidences_calibrated",
        "answers_readable",
    ]
    text = explain_failures(checks)
    assert text.count("would pass:") == 3
    lines = list(iter_gate_lines(checks))
    assert lines[2].startswith("confidences_calibrated: failed (error 0.4")
    assert lines[5] == "not_worse_than_current: not checked, nothing was released before"


def test_without_golden_answers_nothing_is_released() -> None:
    checks = run_release_gate(KIND, table(system("distilled", "11", split="dev")), ReleaseGateSpec(), SPEC)
    assert not any(check.passed for check in checks)


@pytest.mark.parametrize("exports", [[], ["onnx", "onnx"], ["pickle"]])
def test_a_wrong_list_of_formats_is_an_error(exports: list[str]) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match=r"release\.exports"):
        build_task("classification", release={"exports": exports})


def test_a_share_that_is_just_enough_passes() -> None:
    """1 - 7/100 is a little less than 0.93."""
    frame = table(system("distilled", "1" * 93 + "-" * 7))
    assert gate("answers_readable", frame, readable=0.93).passed
    frame = table(system("distilled", "1" * 93 + "0" * 7))
    assert gate("safety_slice_right", frame, safety_slice="a", safety=0.93).passed
