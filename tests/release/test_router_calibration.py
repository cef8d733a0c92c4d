"""The router's threshold: its bound holds, equals the exact one, and too few rows send everything to the teacher."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from scipy.stats import beta, binom

from distill_dagster.evaluation.risk_coverage import NEVER, RoutingRows, compute_curve, measure_router
from distill_dagster.release.routing.calibration import (
    calibrate_router,
    compute_upper_bound,
    count_rows_needed,
    list_thresholds,
)

TEACHER_WRONG = 0.08


def draw_traffic(rows: int, seed: int) -> RoutingRows:
    """Requests whose student is right with its confidence's probability, and a teacher that is nearly always right."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(6, 1, rows)
    return RoutingRows(confidence, rng.random(rows) < confidence, rng.random(rows) > TEACHER_WRONG)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("rows", "margin"), [(500, 0.03), (2000, 0.02)])
def test_the_threshold_is_the_lowest_with_an_exact_bound_below_the_margin(rows: int, margin: float, seed: int) -> None:
    traffic = draw_traffic(rows, seed)
    expected = None
    for threshold in list_thresholds():
        harmed = int(((traffic.confidence >= threshold) & traffic.harmful).sum())
        if binom.cdf(harmed, rows, margin) > 0.05:
            break
        expected = threshold
    calibration = calibrate_router(traffic, margin)
    assert calibration.threshold is not None
    assert calibration.threshold == pytest.approx(expected, rel=1e-9)
    assert calibration.harm_bound is not None
    assert calibration.harm <= calibration.harm_bound <= margin
    assert calibration.coverage == measure_router(traffic, calibration.threshold).coverage > 0


def test_the_promise_holds_over_many_draws() -> None:
    margin, population = 0.02, draw_traffic(100_000, 7)
    rng = np.random.default_rng(1)
    broken = 0
    for _ in range(150):
        drawn = calibrate_router(population.take(rng.integers(0, len(population), 400)), margin)
        broken += drawn.threshold is not None and measure_router(population, drawn.threshold).harm > margin
    assert broken / 150 <= 0.08  # 0.05 and two standard errors


def test_too_few_rows_send_everything_to_the_teacher_and_say_how_many_it_takes() -> None:
    assert [count_rows_needed(margin) for margin in (0.01, 0.02, 0.03)] == [299, 149, 99]
    perfect = RoutingRows.from_answers([0.9] * 298, [True] * 298, [True] * 298)
    calibration = calibrate_router(perfect, 0.01)
    assert calibration.threshold is None
    assert calibration.coverage == 0
    assert "teacher answers everything" in calibration.describe()
    assert "at least 299" in calibration.describe()
    enough = RoutingRows.from_answers([0.9] * 299, [True] * 299, [True] * 299)
    assert calibrate_router(enough, 0.01).threshold == 0


def test_a_large_margin_takes_thirty_rows_and_says_so() -> None:
    calibration = calibrate_router(RoutingRows.from_answers([0.9] * 20, [True] * 20, [True] * 20), 0.2)
    assert calibration.threshold is None
    assert "at least 30." in calibration.describe()


def test_enough_rows_with_too_much_harm_certify_nothing() -> None:
    wrong = RoutingRows.from_answers([1.0] * 400, [False] * 400, [True] * 400)
    calibration = calibrate_router(wrong, 0.01)
    assert calibration.threshold is None
    assert "no threshold shows" in calibration.describe()


def test_no_rows_are_no_error() -> None:
    assert calibrate_router(RoutingRows.from_answers([], [], []), 0.01).threshold is None


def test_disagreement_bounds_harm_where_no_human_labels_are() -> None:
    rng = np.random.default_rng(3)
    confidence = rng.beta(8, 1, 1500)
    agrees = rng.random(1500) < confidence**0.2
    unlabelled = RoutingRows.from_disagreement(confidence.tolist(), agrees.tolist())
    labelled = RoutingRows(confidence, agrees, np.ones(1500, dtype=bool))
    assert calibrate_router(unlabelled, 0.02).threshold == calibrate_router(labelled, 0.02).threshold
    assert "shadowed requests" in calibrate_router(unlabelled, 0.02).describe()


@pytest.mark.parametrize(("events", "rows"), [(0, 299), (3, 100), (50, 50)])
def test_the_upper_bound_is_clopper_and_pearsons(events: int, rows: int) -> None:
    expected = 1.0 if events == rows else beta.ppf(0.95, events + 1, rows - events)
    assert compute_upper_bound(events, rows) == pytest.approx(expected)


def test_the_curve_goes_from_the_teacher_alone_to_the_student_alone() -> None:
    rows = RoutingRows.from_answers([0.9, 0.8, 0.7, 0.6], [True, False, True, False], [True, True, False, False])
    curve = compute_curve(rows)
    assert [point.threshold for point in curve] == [NEVER, 0.9, 0.8, 0.7, 0.6]
    assert [point.coverage for point in curve] == [0, 0.25, 0.5, 0.75, 1]
    assert [point.accuracy for point in curve] == [0.5, 0.5, 0.25, 0.5, 0.5]
    assert [point.loss for point in curve] == [0, 0, 0.25, 0, 0]
    assert curve[0].kept_accuracy is None
    assert curve[2].kept_accuracy == 0.5
    assert len(compute_curve(draw_traffic(1000, 0), points=11)) == 11


def test_rows_of_a_predictions_table() -> None:
    table = pl.DataFrame(
        {
            "system": ["teacher", "teacher", "distilled", "distilled", "distilled"],
            "split": ["dev"] * 4 + ["golden"],
            "item_id": ["b", "a", "a", "b", "a"],
            "confidence": [None, None, 0.4, None, 0.9],
            "correct": [True, False, True, False, True],
        }
    )
    rows = RoutingRows.from_predictions(table, "dev")
    assert rows.confidence.tolist() == [0.4, 0.0]
    assert rows.student_right.tolist() == [True, False]
    assert rows.teacher_right.tolist() == [False, True]


def test_confidences_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        RoutingRows.from_answers([float("nan")], [True], [True])
    with pytest.raises(ValueError, match="different lengths"):
        RoutingRows.from_answers([0.5], [True, False], [True])
