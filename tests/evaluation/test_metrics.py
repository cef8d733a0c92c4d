"""Figures against values worked out by hand, and properties of the intervals."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from distill_dagster.config import EvaluationSpec
from distill_dagster.config.evaluation import MACHINE_USD_PER_HOUR
from distill_dagster.core.errors import DistillError
from distill_dagster.evaluation.metrics import (
    NO_ANSWER,
    NO_SLICE,
    Metrics,
    build_confusion_table,
    build_metrics_frame,
    compute_metrics,
)
from distill_dagster.evaluation.statistics import (
    Interval,
    compute_bootstrap_sums,
    compute_mcnemar_p_value,
    compute_percentile_interval,
    draw_resample_weights,
)
from tests.evaluation.build import LABELS, SPEC, measured, row, table


def _six_items() -> Metrics:
    """refund ×3, card ×2, other ×1; distilled: refund, refund, card | card, (none) | refund."""
    truth = ["refund", "refund", "refund", "card", "card", "other"]
    answers = ["refund", "refund", "card", "card", None, "refund"]
    rows = [
        row("distilled", f"i{i}", t, a, slice="a" if i < 4 else None, latency_s=None if i > 3 else 0.1 * (i + 1))
        for i, (t, a) in enumerate(zip(truth, answers, strict=True))
    ]
    return compute_metrics(table(rows), {}, [*LABELS, "never"], SPEC)


def test_figures_of_six_items_by_hand() -> None:
    score = _six_items().golden.systems["distilled"]

    assert score.n == 6
    assert score.score.value == 3 / 6
    # F1: refund 2·2/(3+3), card 2·1/(2+2), other 0; "never" is no reference and does not pull the mean down.
    assert score.second_score.value == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert score.per_slice == {"a": (4, 3 / 4), NO_SLICE: (2, 0.0)}
    assert [(s.label, s.n, s.answered, s.precision, s.recall) for s in score.per_label] == [
        ("refund", 3, 3, 2 / 3, 2 / 3),
        ("card", 2, 2, 1 / 2, 1 / 2),
        ("other", 1, 0, None, 0.0),
        ("never", 0, 0, None, None),
    ]


def test_confusion_has_a_column_for_answers_that_are_not_labels() -> None:
    metrics = _six_items()
    columns, counts = build_confusion_table(metrics.golden.systems["distilled"], metrics.labels)
    assert columns == ["refund", "card", "other", "never", NO_ANSWER]
    assert counts == [[2, 1, 0, 0, 0], [0, 1, 0, 0, 1], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_latency_counts_only_items_timed_one_by_one() -> None:
    latency = _six_items().golden.systems["distilled"].latency
    assert latency.items == 4
    assert latency.p50 == pytest.approx(0.25)
    assert latency.p95 == pytest.approx(0.385)  # linear: 0.3 + 0.85 · 0.1
    assert latency.mean == pytest.approx(0.25)


def test_a_system_that_was_not_timed_has_no_latency_and_no_cost() -> None:
    metrics = compute_metrics(
        table([row("distilled", "a", "card", "card")]), {}, LABELS, EvaluationSpec(machine_usd_per_hour=1.0)
    )
    assert metrics.golden.systems["distilled"].latency.p50 is None
    assert metrics.facts["distilled"].cost_usd_per_1k is None


def test_cost_of_a_student_is_machine_time_but_a_teacher_keeps_its_own() -> None:
    rows = [row(s, "a", "card", "card", latency_s=0.36) for s in ("teacher", "distilled", "base")]
    spec = EvaluationSpec(machine_usd_per_hour=2.0)
    metrics = compute_metrics(table(rows), {"base": {"cost_usd_per_1k": 7.0}}, LABELS, spec)
    assert metrics.facts["distilled"].cost_usd_per_1k == pytest.approx(0.2)  # 360 s of 2 dollars an hour
    assert metrics.facts["base"].cost_usd_per_1k == 7.0
    assert metrics.facts["teacher"].cost_usd_per_1k is None
    unpriced = compute_metrics(table(rows), {}, LABELS, EvaluationSpec(machine_usd_per_hour=None))
    assert unpriced.facts["distilled"].cost_usd_per_1k is None


def test_retention_and_differences_are_paired() -> None:
    # Always right on the same items: resampling shows no spread, so the exact bound on an unseen item is used.
    metrics = measured({"teacher": "11110000" * 10, "distilled": "11110000" * 10, "base": "00001111" * 10})
    retention = metrics.golden.retention
    unseen = 1 - 0.025 ** (1 / 80)
    assert (retention.value, retention.low, retention.high) == pytest.approx((1.0, 1 - 2 * unseen, 1 + 2 * unseen))
    same = metrics.golden.comparisons["distilled", "teacher"]
    assert (same.difference.low, same.difference.high, same.p_value) == pytest.approx((-unseen, unseen, 1.0))
    # One item apart, the interval is no wider than that one item makes it: unpaired it would be ± 0.15.
    apart = measured({"teacher": "11110000" * 10, "distilled": "1111000" + "1" + "11110000" * 9}).golden
    assert apart.comparisons["distilled", "teacher"].difference.high == pytest.approx(1 / 80 + 1.96 / 80, abs=0.013)
    # Unpaired, these two would have less spread: their results go against each other item by item.
    against = metrics.golden.comparisons["distilled", "base"].difference
    assert against.value == 0.0
    assert against.high == pytest.approx(1.96 * math.sqrt(1 / 80), rel=0.15)


def test_retention_needs_a_teacher_that_is_right_at_least_once() -> None:
    assert measured({"distilled": "110"}).golden.retention.value is None
    assert measured({"distilled": "110", "teacher": "000"}).golden.retention.value is None


def test_comparison_counts_and_mcnemar() -> None:
    c = measured({"distilled": "1111110011", "base": "1100000011"}).golden.comparisons["distilled", "base"]
    assert (c.only_first, c.only_second, c.n) == (4, 0, 10)
    assert c.difference.value == pytest.approx(0.4)
    assert c.p_value == pytest.approx(2 * 0.5**4)
    assert compute_mcnemar_p_value(0, 0) == 1.0
    assert compute_mcnemar_p_value(8, 2) == pytest.approx(2 * (1 + 10 + 45) / 1024)


def test_all_right_is_not_certain() -> None:
    interval = measured({"distilled": "1" * 10}).golden.systems["distilled"].score
    assert interval.value == interval.high == 1.0
    assert interval.low == pytest.approx(0.025 ** (1 / 10))  # Clopper-Pearson, all of 10 right


def test_a_difference_on_every_item_is_not_certain() -> None:
    for own, other, sign in (("1", "0", 1), ("0", "1", -1)):
        found = measured({"distilled": own * 10, "base": other * 10}).golden.comparisons["distilled", "base"].difference
        bound = 2 * 0.025 ** (1 / 10) - 1
        assert found.value == sign
        assert sorted([found.low or 0, found.high or 0]) == pytest.approx(sorted([sign, sign * bound]))


def test_the_interval_equals_the_binomial_one() -> None:
    interval = (
        compute_metrics(
            table([row("distilled", f"i{i}", "card", "card" if i < 120 else "other") for i in range(200)]),
            {},
            LABELS,
            EvaluationSpec(bootstrap_samples=20_000),
        )
        .golden.systems["distilled"]
        .score
    )
    half = 1.96 * math.sqrt(0.6 * 0.4 / 200)
    assert interval.low == pytest.approx(0.6 - half, abs=0.006)
    assert interval.high == pytest.approx(0.6 + half, abs=0.006)


def test_seed_decides_the_intervals() -> None:
    rows = table([row("distilled", f"i{i}", "card", "card" if i % 3 else "other") for i in range(97)])
    one, again, other = (
        compute_metrics(rows, {}, LABELS, EvaluationSpec(seed=seed, bootstrap_samples=400)) for seed in (1, 1, 2)
    )
    assert one == again
    assert one.golden.systems["distilled"].second_score != other.golden.systems["distilled"].second_score


def test_blocks_do_not_change_the_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    contributions = np.eye(7, dtype=np.float32)
    whole = compute_bootstrap_sums(contributions, 50, seed=5)
    monkeypatch.setattr("distill_dagster.evaluation.statistics._CHUNK_CELLS", 7 * 3)
    assert np.array_equal(whole, compute_bootstrap_sums(contributions, 50, seed=5))
    assert (whole.sum(axis=1) == 7).all()


def test_rows_in_any_order_give_the_same_figures() -> None:
    rows = [row(s, f"i{i}", LABELS[i % 3], LABELS[(i * i) % 3]) for s in ("distilled", "base") for i in range(30)]
    assert compute_metrics(table(rows), {}, LABELS, SPEC) == compute_metrics(
        table(rows[::-1]).reverse(), {}, LABELS, SPEC
    )


def test_systems_are_compared_on_the_items_both_answered() -> None:
    rows = [row("distilled", f"i{i}", "card", "card") for i in range(4)]
    rows += [row("teacher", "i0", "card", "other"), row("teacher", "i1", "card", "card")]
    golden = compute_metrics(table(rows), {}, LABELS, SPEC).golden
    assert golden.systems["teacher"].n == 2
    assert golden.comparisons["distilled", "teacher"].n == 2
    assert golden.retention.value == 2.0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("distilled", "a", "card", "card")] * 2, "two answers to the same item"),
        ([row("distilled", "a", "card", "card"), row("base", "a", "other", "card")], "two references"),
        ([row("distilled", "a", "card", "other", correct=True)], "`correct`"),
        ([row("distilled", "a", "card", "card", correct=None)], "`correct`"),
    ],
)
def test_a_contradictory_table_is_refused(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compute_metrics(table(rows), {}, LABELS, SPEC)


def test_without_golden_answers_the_remedy_is_named() -> None:
    with pytest.raises(DistillError, match=r"golden\.jsonl"):
        compute_metrics(table([row("distilled", "a", "card", "card", split="dev")]), {}, LABELS, SPEC)


def test_an_unknown_fact_is_an_error() -> None:
    with pytest.raises(TypeError):
        compute_metrics(table([row("distilled", "a", "card", "card")]), {"distilled": {"cost": 1}}, LABELS, SPEC)


def test_frame_for_the_table_check() -> None:
    rows = [row("distilled", "a", "card", "card", latency_s=0.02), row("base", "a", "card", "other")]
    frame = build_metrics_frame(compute_metrics(table(rows), {"distilled": {"bytes": 10**9}}, LABELS, SPEC))
    assert list(frame.columns) == [
        "system", "score", "low", "high", "second_score", "p50_ms", "p95_ms", "parameters", "bytes", "cost_usd_per_1k"
    ]  # fmt: skip
    assert frame["system"].tolist() == ["base", "distilled"]
    assert frame["p50_ms"].tolist()[1] == pytest.approx(20)
    assert frame["bytes"].tolist()[1] == 10**9
    cost = frame["cost_usd_per_1k"].tolist()
    assert math.isnan(cost[0]), "base was not timed"
    assert cost[1] == pytest.approx(1000 * 0.02 / 3600 * MACHINE_USD_PER_HOUR)
    assert all(pd.api.types.is_float_dtype(frame[c]) for c in frame.columns if c != "system")


def test_two_thousand_samples_take_less_than_three_seconds() -> None:
    rng = np.random.default_rng(0)
    labels = [f"label {i}" for i in range(77)]
    rows = []
    for system in ("teacher", "base", "seed_only", "distilled", "centroid", "slice_label"):
        answers = rng.integers(0, 77, 600)
        rows += [row(system, f"i{i}", labels[i % 77], labels[a]) for i, a in enumerate(answers)]
    frame = table(rows)
    compute_metrics(frame, {}, labels, SPEC)  # imports
    started = time.process_time()
    compute_metrics(frame, {}, labels, EvaluationSpec(bootstrap_samples=2000))
    assert time.process_time() - started < 3 * 2  # processor time of both threads of a small machine


_ANSWERS = st.lists(
    st.tuples(st.sampled_from(LABELS), *[st.sampled_from([*LABELS, None, "nonsense"])] * 3), min_size=1, max_size=25
)


@settings(deadline=None, max_examples=60)
@given(_ANSWERS, st.floats(0.55, 0.99))
def test_intervals_hold_their_value(answers: list[tuple[str, ...]], confidence: float) -> None:
    systems = ("teacher", "base", "distilled")
    rows = [
        row(system, f"i{i}", item[0], item[k + 1]) for i, item in enumerate(answers) for k, system in enumerate(systems)
    ]
    spec = EvaluationSpec(bootstrap_samples=100, confidence=confidence)
    golden = compute_metrics(table(rows), {}, LABELS, spec).golden
    found = [s.score for s in golden.systems.values()] + [s.second_score for s in golden.systems.values()]
    for interval in found:
        assert interval.value is not None
        assert interval.low is not None
        assert interval.high is not None
        assert 0 <= interval.low <= interval.value <= interval.high <= 1
    for c in golden.comparisons.values():
        assert c.difference.low is not None
        assert -1 <= c.difference.low <= (c.difference.value or 0.0) <= (c.difference.high or 0.0) <= 1
        if c.ratio.value is not None and c.ratio.low is not None:
            assert 0 <= c.ratio.low <= c.ratio.value <= (c.ratio.high or 0.0)
        assert c.difference.value == pytest.approx((c.only_first - c.only_second) / c.n)
        assert 0 <= c.p_value <= 1


def test_rows_without_a_reference_are_left_out() -> None:
    frame = table([row("distilled", "a", "card", "card"), row("distilled", "b", "card", "other")])
    blank = frame.with_columns(
        reference=pl.when(pl.col("item_id") == "b").then(None).otherwise(pl.col("reference")), correct=pl.lit(True)
    )
    assert compute_metrics(blank, {}, LABELS, SPEC).golden.systems["distilled"].n == 1


def test_macro_f1_interval_against_samples_scored_one_by_one() -> None:
    truth = ["card", *["other"] * 8]  # one rare label: many samples do not hold it
    answers = ["card", "card", "card", "refund", *["other"] * 5]
    rows = [row("distilled", f"i{i}", t, a) for i, (t, a) in enumerate(zip(truth, answers, strict=True))]
    spec = EvaluationSpec(bootstrap_samples=200, seed=11)
    found = compute_metrics(table(rows), {}, LABELS, spec).golden.systems["distilled"].second_score
    scores = []
    for weights in np.vstack(list(draw_resample_weights(9, 200, 11))):
        drawn = np.repeat(np.arange(9), weights.astype(int))
        own, given_ = np.array(truth)[drawn], np.array(answers)[drawn]
        scores.append(f1_score(own, given_, labels=np.unique(own), average="macro", zero_division=0))
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(scores, [0.025, 0.975])))


def test_a_biased_statistic_stays_in_its_interval() -> None:
    assert compute_percentile_interval(0.5, np.full(10, 0.75), 0.95) == Interval(0.5, 0.5, 0.75)
    assert compute_percentile_interval(0.5, np.array([np.nan, 0.25]), 0.95) == Interval(0.5, 0.25, 0.5)
    assert compute_percentile_interval(0.5, np.array([np.nan]), 0.95) == Interval(0.5)
