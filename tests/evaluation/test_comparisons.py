"""All pairs, slices, origins of errors and non-inferiority, recomputed from the predictions table."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from distill_dagster.config import EvaluationSpec
from distill_dagster.core import progress
from distill_dagster.evaluation.metrics import PERMUTATION, ErrorOrigins, Metrics, compute_metrics
from distill_dagster.evaluation.metrics_json import build_metrics_json
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs, write_report
from distill_dagster.evaluation.statistics import compute_mcnemar_p_value, compute_paired_score_interval
from distill_dagster.evaluation.system_reliability import measure_system_reliability
from distill_dagster.kinds.summarization import SummaryKind
from distill_dagster.student.predict import StudentPredictor
from distill_dagster.student.types import Prediction, StudentPrompt
from tests.evaluation.build import LABELS, SPEC, measured, patterns, row, table

RIGHT = {"teacher": 0.9, "base": 0.4, "distilled": 0.75, "centroid": 0.6}


@pytest.fixture(scope="module")
def predictions() -> pl.DataFrame:
    rng, rows = np.random.default_rng(7), []
    for i in range(240):
        reference = LABELS[i % 3]
        for system, share in RIGHT.items():
            answer = reference if rng.random() < share else str(rng.choice(LABELS))
            rows.append(row(system, f"g{i:03d}", reference, answer, slice=f"s{i % 5}"))
    return table(rows)


@pytest.fixture(scope="module")
def metrics(predictions: pl.DataFrame) -> Metrics:
    return compute_metrics(predictions, {}, LABELS, SPEC)


def correct(predictions: pl.DataFrame, system: str, slice_: str | None = None) -> np.ndarray[Any, Any]:
    rows = predictions.filter(pl.col("system") == system)
    rows = rows if slice_ is None else rows.filter(pl.col("slice") == slice_)
    return rows.sort("item_id")["correct"].to_numpy()


def test_every_pair_is_compared_once_and_corrected_for_all(predictions: pl.DataFrame, metrics: Metrics) -> None:
    pairs = metrics.golden.pairs
    assert [(c.first, c.second) for c in pairs] == list(itertools.combinations(RIGHT, 2))
    for c in pairs:
        first, second = correct(predictions, c.first), correct(predictions, c.second)
        assert c.p_value == pytest.approx(compute_mcnemar_p_value((first > second).sum(), (second > first).sum()))
        assert c.difference.value == pytest.approx(first.mean() - second.mean())
    expected = multipletests([c.p_value for c in pairs], method="holm")[1]
    assert [c.adjusted_p_value for c in pairs] == pytest.approx(list(expected))
    same, turned = metrics.golden.comparisons["base", "distilled"], metrics.golden.comparisons["distilled", "base"]
    assert same.adjusted_p_value == turned.adjusted_p_value == pairs[3].adjusted_p_value
    assert same.adjusted_p_value is not None
    assert same.adjusted_p_value >= same.p_value


def test_scores_have_a_wilson_interval_as_a_whole_and_by_slice(predictions: pl.DataFrame, metrics: Metrics) -> None:
    score = metrics.golden.systems["distilled"]
    assert score.wilson is not None
    right = correct(predictions, "distilled")
    low, high = proportion_confint(right.sum(), len(right), method="wilson")
    assert (score.wilson.low, score.wilson.high) == pytest.approx((low, high))
    assert [s.slice for s in score.slices] == ["s0", "s1", "s2", "s3", "s4"]
    for one in score.slices:
        right = correct(predictions, "distilled", one.slice)
        low, high = proportion_confint(right.sum(), 48, method="wilson")
        assert one.n == 48
        assert (one.score.value, one.score.low, one.score.high) == pytest.approx((right.mean(), low, high))


def test_slices_are_compared_and_corrected_for_all_slices(predictions: pl.DataFrame, metrics: Metrics) -> None:
    assert list(metrics.golden.slice_comparisons) == ["teacher", "base", "centroid"]
    for other, found in metrics.golden.slice_comparisons.items():
        assert [c.slice for c in found] == ["s0", "s1", "s2", "s3", "s4"]
        for c in found:
            own, others = correct(predictions, "distilled", c.slice), correct(predictions, other, c.slice)
            counts = int((own > others).sum()), int((others > own).sum())
            assert (c.only_first, c.only_second) == counts
            assert c.difference == compute_paired_score_interval(*counts, c.n, SPEC.confidence)
        expected = multipletests([c.p_value for c in found], method="holm")[1]
        assert [c.adjusted_p_value for c in found] == pytest.approx(list(expected))


def test_errors_are_inherited_or_own() -> None:
    given = [  # reference, teacher, distilled, slice
        ("card", "card", "card", "a"),
        ("card", "other", "other", "a"),  # inherited, the same answer
        ("card", "other", "refund", "a"),  # inherited, another answer
        ("card", None, None, "b"),  # inherited; no answer is not the same answer
        ("card", "card", "other", "b"),  # own
        ("card", "card", None, "b"),  # own
        ("card", "refund", "card", "b"),
    ]
    rows = []
    for i, (reference, teacher, distilled, slice_) in enumerate(given):
        rows.append(row("teacher", f"g{i}", reference, teacher, slice=slice_))
        rows.append(row("distilled", f"g{i}", reference, distilled, slice=slice_))
    rows.append(row("distilled", "not asked", "card", "other", slice="a"))
    systems = compute_metrics(table(rows), {}, LABELS, SPEC).golden.systems
    found = systems["distilled"]
    assert found.errors == ErrorOrigins(n=7, same_answer=1, another_answer=2, own=2)
    assert found.errors.inherited == 3
    assert found.errors_per_slice == {"a": ErrorOrigins(3, 1, 1, 0), "b": ErrorOrigins(4, 0, 1, 2)}
    assert systems["teacher"].errors is None
    assert measured({"distilled": "10", "base": "01"}).golden.systems["base"].errors is None


@pytest.mark.parametrize(
    ("student", "teacher", "margin", "shown"),
    [
        ("1" * 96 + "0" * 4, "1" * 96 + "0" * 4, 0.05, True),  # the same answers on 100 items: 3.7 points at most
        ("1" * 96 + "0" * 4, "1" * 96 + "0" * 4, 0.03, None),
        ("0" * 20 + "1" * 80, "1" * 100, 0.05, False),
        ("0" * 3 + "1" * 97, "1" * 100, 0.05, None),
    ],
)
def test_non_inferiority(student: str, teacher: str, margin: float, shown: bool | None) -> None:
    spec = EvaluationSpec(bootstrap_samples=100, margin=margin)
    found = compute_metrics(patterns({"distilled": student, "teacher": teacher}), {}, LABELS, spec).golden
    result = found.non_inferiority
    assert result is not None
    assert result.is_shown is shown
    assert result.p_value is not None
    assert (result.p_value < 0.025) is (shown is True)
    assert (result.needed_items is not None) == (shown is None)
    if result.needed_items is not None:
        more = result.needed_items // len(student) + 1
        rows = patterns({"distilled": student * more, "teacher": teacher * more})
        again = compute_metrics(rows, {}, LABELS, spec).golden.non_inferiority
        assert again is not None
        assert again.is_shown


def test_without_a_teacher_nothing_is_compared_with_it() -> None:
    golden = measured({"distilled": "1100", "base": "0101"}).golden
    assert golden.non_inferiority is None
    assert list(golden.slice_comparisons) == ["base"]


def test_graded_scores_have_bootstrap_intervals_and_permutation_tests() -> None:
    kind = SummaryKind(cast("Any", SimpleNamespace()))
    texts = ["the fare was refunded", "the card was lost", "a ticket for two", "no seat was left in the train"]
    rows = []
    for i in range(24):
        reference = texts[i % 4]
        for system, answer in {"teacher": reference, "distilled": reference.replace("the ", "a ")}.items():
            rows.append(row(system, f"g{i:02d}", reference, answer, slice=f"s{i % 2}"))
    golden = compute_metrics(table(rows), {}, (), SPEC, kind).golden
    score = golden.systems["distilled"]
    assert (score.wilson, score.errors) == (None, None)
    assert [s.n for s in score.slices] == [12, 12]
    for one in score.slices:
        assert one.score.low is not None
        assert one.score.low <= (one.score.value or 0) <= (one.score.high or 0)
    assert golden.pairs[0].test == PERMUTATION
    assert golden.non_inferiority is not None
    assert golden.non_inferiority.p_value is None
    assert golden.non_inferiority.is_shown is False
    assert {c.slice: c.adjusted_p_value >= c.p_value for c in golden.slice_comparisons["teacher"]} == {
        "s0": True,
        "s1": True,
    }


def test_the_statistics_of_a_report_recompute_from_the_predictions_next_to_it(
    predictions: pl.DataFrame, metrics: Metrics, tmp_path: Path
) -> None:
    inputs = ReportInputs("mail", "small", "d", "s", "2026-01-02T03:04:05+00:00", {})
    inputs = replace(inputs, reliability=measure_system_reliability(predictions))
    write_report(tmp_path, predictions, metrics, recommend(metrics), inputs)
    figures = json.loads((tmp_path / "metrics.json").read_text())
    stored = pl.read_parquet(tmp_path / "predictions.parquet")
    inputs = replace(inputs, reliability=measure_system_reliability(stored))
    again = compute_metrics(stored, {}, LABELS, SPEC)
    found = json.loads(json.dumps(build_metrics_json(again, recommend(again), inputs)))
    for name in ("systems", "splits", "pairs", "slice_comparisons", "non_inferiority", "error_origins", "calibration"):
        assert figures[name], name
        assert found[name] == figures[name], name


@pytest.mark.parametrize(("items", "shown"), [(3, None), (100, True)])
def test_graded_scores_without_any_spread_are_not_certain(items: int, shown: bool | None) -> None:
    """A student that copies its teacher on a few items is not shown to be as good: resampling has no spread there."""
    kind = SummaryKind(cast("Any", SimpleNamespace()))
    rows = [
        row(system, f"g{i:03d}", "the fare was refunded", "a fare refunded", slice=f"s{i % 2}")
        for i in range(items)
        for system in ("teacher", "distilled")
    ]
    golden = compute_metrics(table(rows), {}, (), SPEC, kind).golden
    unseen = 1 - 0.025 ** (1 / items)
    assert golden.non_inferiority is not None
    assert golden.non_inferiority.is_shown is shown
    for difference in (golden.non_inferiority.difference, golden.comparisons["distilled", "teacher"].difference):
        assert (difference.low, difference.high) == pytest.approx((-unseen, unseen))
    score = golden.systems["distilled"].score
    value = score.value or 0.0
    assert (score.low, score.high) == pytest.approx((value - unseen * value, value + unseen * (1 - value)))
    assert golden.retention.low == pytest.approx(max(0.0, 1 - unseen / value))
    intervals = [one.score for one in golden.systems["distilled"].slices]
    intervals += [one.difference for one in golden.slice_comparisons["teacher"]]
    for interval in intervals:
        assert interval.low is not None
        assert interval.low < (interval.value or 0.0)


def test_a_long_computation_says_how_far_it_is(predictions: pl.DataFrame) -> None:
    """Figures of free texts take many seconds."""
    heard: list[tuple[str, int, int]] = []
    with progress.listen_to_progress(lambda one: heard.append((one.work, one.done, one.total))):
        compute_metrics(predictions, {}, LABELS, SPEC)
    assert heard == [("computing figures of golden", number, 4) for number in range(4)]


def test_a_student_that_predicts_for_minutes_says_how_far_it_is() -> None:
    base = SimpleNamespace(parameters=1)
    student = SimpleNamespace(base=base, predict_batch=lambda asked: [Prediction("card", {}, "card") for _ in asked])
    predictor = StudentPredictor(cast("Any", student), 1)
    heard: list[tuple[str, int, int]] = []
    with progress.listen_to_progress(lambda one: heard.append((one.work, one.done, one.total))):
        predictor.predict([StudentPrompt.from_text("x")] * 70)
        predictor.predict([StudentPrompt.from_text("x")])
    assert heard == [("predicting answers", start, 70) for start in (0, 32, 64)]
