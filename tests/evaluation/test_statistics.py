"""Intervals and tests, against statsmodels, scipy and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from distill_dagster.evaluation.statistics import (
    Interval,
    adjust_p_values,
    compute_accuracy_interval,
    compute_bootstrap_mean,
    compute_mcnemar_p_value,
    compute_non_inferiority_p_value,
    compute_paired_score,
    compute_paired_score_interval,
    compute_wilson_interval,
)

COUNTS = [(0, 0, 100), (1, 0, 252), (0, 4, 60), (9, 3, 252), (7, 19, 252), (30, 12, 80), (43, 0, 100), (5, 0, 5)]


@pytest.mark.parametrize(("correct", "items"), [(199, 252), (0, 9), (9, 9), (1, 3), (2500, 3080)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_equals_statsmodels(correct: int, items: int, confidence: float) -> None:
    found = compute_wilson_interval(correct, items, confidence)
    low, high = proportion_confint(correct, items, 1 - confidence, method="wilson")
    assert found.value == correct / items
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_exact_bounds_equal_statsmodels_where_a_bootstrap_has_no_spread() -> None:
    for correct in (0, 40):
        found = compute_accuracy_interval(correct, 40, np.full(10, correct / 40), 0.95)
        assert (found.low, found.high) == pytest.approx(proportion_confint(correct, 40, 0.05, method="beta"), abs=1e-9)


@pytest.mark.parametrize(("only_first", "only_second", "items"), COUNTS)
def test_mcnemar_equals_statsmodels(only_first: int, only_second: int, items: int) -> None:
    same = items - only_first - only_second
    expected = mcnemar([[same, only_first], [only_second, 0]], exact=True).pvalue
    assert compute_mcnemar_p_value(only_first, only_second) == pytest.approx(expected)


@pytest.mark.parametrize("p_values", [[0.01, 0.04, 0.03, 0.005], [0.5], [1.0, 0.9, 0.02], [0.2, 0.2, 0.2], []])
def test_holm_equals_statsmodels(p_values: list[float]) -> None:
    expected = multipletests(p_values, method="holm")[1] if p_values else []
    assert adjust_p_values(p_values) == pytest.approx(list(expected))


def fit_score(b: int, c: int, items: int, difference: float) -> float:
    """The score with the variance at the most likely shares under the hypothesis, which scipy searches for."""

    def compute_loss(second: float) -> float:
        first, same = second + difference, 1 - 2 * second - difference
        shares = [(b, first), (c, second), (items - b - c, same)]
        return -sum(count * math.log(max(share, 1e-300)) for count, share in shares if count)

    low, high = max(0.0, -difference), (1 - difference) / 2
    second = minimize_scalar(compute_loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (b - c - items * difference) / math.sqrt(items * (2 * second + difference - difference**2))


@pytest.mark.parametrize(("only_first", "only_second", "items"), COUNTS)
@pytest.mark.parametrize("difference", [-0.3, -0.05, 0.02, 0.4])
def test_the_paired_score_uses_the_most_likely_shares(
    only_first: int, only_second: int, items: int, difference: float
) -> None:
    found = compute_paired_score(only_first, only_second, items, difference)
    assert found == pytest.approx(fit_score(only_first, only_second, items, difference), rel=1e-4)


@pytest.mark.parametrize(("only_first", "only_second", "items"), COUNTS)
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_paired_interval_has_the_differences_that_are_not_rejected(
    only_first: int, only_second: int, items: int, confidence: float
) -> None:
    found = compute_paired_score_interval(only_first, only_second, items, confidence)
    assert found.low is not None
    assert found.high is not None
    level = norm.ppf((1 + confidence) / 2)
    if found.low > -1:
        assert compute_paired_score(only_first, only_second, items, found.low) == pytest.approx(level, abs=1e-5)
    if found.high < 1:
        assert compute_paired_score(only_first, only_second, items, found.high) == pytest.approx(-level, abs=1e-5)
    mirrored = compute_paired_score_interval(only_second, only_first, items, confidence)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low), abs=1e-6)


def test_the_paired_score_at_zero_is_that_of_mcnemar() -> None:
    expected = mcnemar([[226, 7], [19, 0]], exact=False, correction=False).statistic
    assert compute_paired_score(7, 19, 252, 0.0) ** 2 == pytest.approx(expected)


def test_no_item_apart_gives_the_wilson_bound_of_nothing_seen() -> None:
    found = compute_paired_score_interval(0, 0, 100, 0.95)
    bound = compute_wilson_interval(0, 100, 0.95).high
    assert bound is not None
    assert (found.low, found.high) == pytest.approx((-bound, bound))


def test_the_paired_interval_covers_where_a_bootstrap_does_not() -> None:
    """100 items, of which the second system alone gets 2 % right: a bootstrap of none or one is too narrow."""
    rng, true, covered = np.random.default_rng(0), -0.02, 0
    for only_second in rng.binomial(100, -true, 400):
        found = compute_paired_score_interval(0, int(only_second), 100, 0.95)
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= true <= found.high
    assert covered >= 0.94 * 400


def test_non_inferiority_agrees_with_the_interval() -> None:
    for only_first, only_second, items in COUNTS:
        low = compute_paired_score_interval(only_first, only_second, items, 0.95).low
        p_value = compute_non_inferiority_p_value(only_first, only_second, items, 0.05)
        assert low is not None
        assert (p_value < 0.025) == (low > -0.05)


def test_a_mean_has_a_bootstrap_interval_like_scipy() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(1).beta(4, 2, 80).astype(np.float32)
    found = compute_bootstrap_mean(values, 5000, 0, 0.95)
    expected = bootstrap((values,), np.mean, n_resamples=5000, method="percentile", random_state=0).confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.003)
    assert compute_bootstrap_mean(values[:0], 100, 0, 0.95) == Interval(None)
