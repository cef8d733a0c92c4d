"""Soft labels against human labels: expected calibration error, reliability table and temperature."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import softmax

from distill_dagster.curation.soft_labels.reliability import measure_reliability
from distill_dagster.curation.soft_labels.temperature import (
    MIN_DEV_ROWS,
    TEMPERATURE_BOUNDS,
    SoftAnswer,
    fit_temperature,
    rescale_soft_labels_expr,
)
from distill_dagster.tables.schemas import SOFT_LABELS

LABELS = "abcd"


def test_the_error_is_the_mean_gap_of_the_bins() -> None:
    confidences = [0.95] * 4 + [0.55] * 2
    measured = measure_reliability(confidences, [True, True, True, False, True, False])
    assert measured is not None
    # By hand: 4 of 6 rows say 0.95 and 3 of 4 are right; 2 of 6 say 0.55 and 1 of 2 is right.
    assert measured.ece == pytest.approx(4 / 6 * 0.20 + 2 / 6 * 0.05)
    assert measured.rows == 6
    assert measured.stated == pytest.approx(0.8167, abs=1e-4)
    assert measured.right == pytest.approx(4 / 6)
    assert [(one.low, one.rows, one.right) for one in measured.bins] == [(0.5, 2, 0.5), (0.9, 4, 0.75)]
    assert all(one.right_low <= one.right <= one.right_high for one in measured.bins)


def test_edges_belong_to_the_bin_above_and_certainty_to_the_last() -> None:
    measured = measure_reliability([0.0, 0.3, 1.0, 1.0], [False, False, True, True])
    assert measured is not None
    assert [(one.low, one.rows) for one in measured.bins] == [(0.0, 1), (0.3, 1), (0.9, 2)]
    assert measure_reliability([], []) is None


def test_few_calibrated_rows_show_an_error_that_is_chance_and_an_overconfident_teacher_does_not() -> None:
    rng = random.Random(0)
    stated = [rng.choice([0.55, 0.75, 0.95]) for _ in range(60)]
    calibrated = measure_reliability(stated, [rng.random() < one for one in stated])
    assert calibrated is not None
    assert 0 < calibrated.ece < calibrated.chance_ece
    assert not calibrated.is_beyond_chance
    too_sure = measure_reliability([0.95] * 60, [True] * 40 + [False] * 20)
    assert too_sure is not None
    assert too_sure.is_beyond_chance
    assert too_sure.stated > too_sure.right


def draw_answers(rows: int, sharpness: float, *, named: int = len(LABELS)) -> list[SoftAnswer]:
    """Answers whose true labels are drawn from a softmax, and which state it `sharpness` times as sharp."""
    rng = np.random.default_rng(1)
    answers = []
    for logits in rng.normal(0, 1.5, size=(rows, len(LABELS))):
        reference = rng.choice(list(LABELS), p=softmax(logits))
        kept = np.argsort(-logits)[:named]
        probs = dict(zip([LABELS[i] for i in kept], softmax(sharpness * logits[kept]), strict=True))
        answers.append(SoftAnswer(probs, max(probs, key=lambda label: probs[label]), str(reference)))
    return answers


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.5])
def test_the_temperature_undoes_how_much_too_sharp_the_soft_labels_are(sharpness: float) -> None:
    fit = fit_temperature(draw_answers(3000, sharpness))
    assert fit.temperature == pytest.approx(sharpness, rel=0.1)
    assert fit.nll_after <= fit.nll_before + 1e-3
    if sharpness != 1:
        assert fit.ece_after < fit.ece_before / 3


def test_true_labels_that_the_teacher_does_not_name_count_as_wrong_and_do_not_break_the_fit() -> None:
    answers = draw_answers(2000, 1.0, named=2)
    assert any(one.reference not in one.probs for one in answers)
    fit = fit_temperature(answers)
    assert 1 < fit.temperature < 2, "it named two labels as if there were no others"
    assert fit.ece_after < fit.ece_before


def test_labels_that_the_teacher_does_not_name_change_nothing_and_stay_without_probability() -> None:
    named = draw_answers(400, 2.5, named=2)
    floor = {f"other {n}": 1e-6 for n in range(70)}  # as candidates have it for labels without a probability
    wide = [SoftAnswer(floor | dict(one.probs), one.answer, one.reference) for one in named]
    assert fit_temperature(wide).temperature == fit_temperature(named).temperature
    (scaled,) = rescale([("t", {"a": 0.8, "b": 0.2} | floor)], {"t": 5.0})
    assert scaled == {"a": pytest.approx(0.5689, abs=1e-4), "b": pytest.approx(0.4311, abs=1e-4)}


def test_a_teacher_without_a_mistake_on_dev_does_not_become_certain_of_everything() -> None:
    answers = [SoftAnswer({"a": 0.9, "b": 0.1}, "a", "a")] * 96
    fit = fit_temperature(answers)
    assert TEMPERATURE_BOUNDS[0] < fit.temperature < 1
    frame = rescale([("t", {"a": 0.9, "b": 0.1})], {"t": fit.temperature})
    assert frame[0]["a"] == pytest.approx(97 / 98, abs=1e-3), "Platt's target: (right + 1) / (right + 2)"


def test_too_few_dev_rows_leave_the_soft_labels_as_they_are() -> None:
    fit = fit_temperature(draw_answers(MIN_DEV_ROWS - 1, 2.5))
    assert (fit.temperature, fit.is_fitted) == (1.0, False)
    assert fit.nll_after == pytest.approx(fit.nll_before)
    with pytest.raises(ValueError, match="without answers"):
        fit_temperature([])
    with pytest.raises(ValueError, match="has no probability"):
        fit_temperature([SoftAnswer({"a": 1.0, "b": 0.0}, "b", "b")])


def rescale(rows: list[tuple[str | None, dict[str, float] | None]], temperatures: dict[str, float]) -> list[Any]:
    entries = [[{"label": k, "prob": p} for k, p in soft.items()] if soft is not None else None for _, soft in rows]
    columns = {"teacher": [teacher for teacher, _ in rows], "soft_labels": entries}
    frame = pl.DataFrame(columns, schema={"teacher": pl.String, "soft_labels": SOFT_LABELS})
    scaled = frame.with_columns(rescale_soft_labels_expr(temperatures))
    assert scaled.schema == frame.schema
    return [
        {entry["label"]: entry["prob"] for entry in soft} if soft is not None else None
        for soft in scaled["soft_labels"].to_list()
    ]


def test_rows_are_rescaled_by_the_temperature_of_their_own_teacher() -> None:
    soft = {"a": 0.8, "b": 0.2}
    rows = [("one", soft), ("two", soft), ("three", soft), (None, None), ("one", {"a": 1.0})]
    scaled = rescale(rows, {"one": 2.0, "two": 0.5})
    softer = math.sqrt(0.8) / (math.sqrt(0.8) + math.sqrt(0.2))
    assert scaled[0] == {"a": pytest.approx(softer, abs=1e-6), "b": pytest.approx(1 - softer, abs=1e-6)}
    assert scaled[1] == {"a": pytest.approx(0.64 / 0.68, abs=1e-6), "b": pytest.approx(0.04 / 0.68, abs=1e-6)}
    assert scaled[2:] == [soft, None, {"a": 1.0}]


def test_extreme_temperatures_keep_a_distribution() -> None:
    soft = {"a": 0.5, "b": 0.499, "c": 0.001}
    for temperature in TEMPERATURE_BOUNDS:
        (scaled,) = rescale([("t", soft)], {"t": temperature})
        assert sum(scaled.values()) == pytest.approx(1, abs=1e-5)
        assert max(scaled, key=lambda label: scaled[label]) == "a"
        assert all(prob > 0 for prob in scaled.values())
