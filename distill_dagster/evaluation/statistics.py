"""Confidence intervals and paired tests on per-item results. Arrays have one entry (row) per item."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CHUNK_CELLS = 4_000_000
"""Items times samples that are drawn at once. It bounds the memory at some tens of megabytes."""


@dataclass(frozen=True)
class Interval:
    """A figure and its interval. None if it is undefined, such as a ratio to zero or a mean of no items."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def draw_resample_weights(items: int, samples: int, seed: int) -> Iterator[NDArray[np.float32]]:
    """Draw how often each item is in each bootstrap sample (Efron 1979), in blocks of shape (samples, items).

    A block times a matrix of per-item contributions gives the counts of every system at once. All systems share the
    weights, so their differences and ratios are paired.
    """
    import numpy as np

    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK_CELLS // max(items, 1))
    for start in range(0, samples, step):
        rows = min(step, samples - start)
        drawn = rng.integers(0, items, size=(rows, items))
        drawn += np.arange(rows)[:, None] * items
        counts = np.bincount(drawn.ravel(), minlength=rows * items).reshape(rows, items)
        yield counts.astype(np.float32)  # exact, since counts stay far below 2**24


def compute_bootstrap_sums(contributions: NDArray[np.float32], samples: int, seed: int) -> NDArray[np.float64]:
    """Sum contributions (items, columns) over every bootstrap sample. Returns shape (samples, columns)."""
    import numpy as np

    blocks = [weights @ contributions for weights in draw_resample_weights(len(contributions), samples, seed)]
    return np.concatenate(blocks).astype(np.float64)


def divide_or_nan(dividend: NDArray[np.float64], divisor: NDArray[np.float64]) -> NDArray[np.float64]:
    """Divide element by element. NaN where the divisor is zero."""
    import numpy as np

    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(divisor > 0, dividend / divisor, np.nan)


def compute_percentile_interval(value: float | None, draws: NDArray[np.float64], confidence: float) -> Interval:
    """Percentile bootstrap interval (Efron & Tibshirani 1993, chapter 13).

    Samples in which the statistic is undefined (NaN) are left out. Some statistics, such as macro-F1 and ratios, are
    biased in small samples; then the interval is widened to include `value`.
    """
    import numpy as np

    defined = draws[np.isfinite(draws)]
    if value is None or not len(defined):
        return Interval(value)
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return Interval(value, min(float(low), value), max(float(high), value))


def compute_bootstrap_mean(
    values: NDArray[np.float32], samples: int, seed: int, confidence: float, lowest: float = 0.0
) -> Interval:
    """Mean of some values from `lowest` to 1, with its percentile bootstrap interval.

    If all values are the same, the interval is that of `bound_constant_mean`.
    """
    if not len(values):
        return Interval(None)
    if values.min() == values.max():
        return bound_constant_mean(float(values[0]), len(values), confidence, lowest)
    draws = compute_bootstrap_sums(values[:, None], samples, seed)[:, 0] / len(values)
    return compute_percentile_interval(float(values.mean()), draws, confidence)


def compute_accuracy_interval(correct: int, items: int, draws: NDArray[np.float64], confidence: float) -> Interval:
    """Percentile bootstrap. If no item or every item is right, the exact binomial interval (Clopper & Pearson 1934).

    In that case every bootstrap sample is the same, and percentiles would show more certainty than the items give.
    """
    from scipy.stats import binomtest

    if not items:
        return Interval(None)
    value = correct / items
    if 0 < correct < items:
        return compute_percentile_interval(value, draws, confidence)
    exact = binomtest(correct, items).proportion_ci(confidence, method="exact")
    return Interval(value, min(float(exact.low), value), max(float(exact.high), value))


def compute_difference_interval(
    only_first: int, only_second: int, items: int, draws: NDArray[np.float64], confidence: float
) -> Interval:
    """Interval of a paired difference of two accuracies, from the items that only one of the two got right.

    This is a percentile bootstrap with one exception. If no item separates the two, or every item does in the same
    direction, all samples are the same. Then the interval is that of `bound_constant_mean`.
    """
    if not items:
        return Interval(None)
    value = (only_first - only_second) / items
    if only_first + only_second == 0 or items in (only_first, only_second):
        return bound_constant_mean(value, items, confidence, lowest=-1.0)
    return compute_percentile_interval(value, draws, confidence)


def bound_unseen_share(items: int, confidence: float) -> float:
    """Upper bound of the share of an event that occurs in none of `items` items (Clopper & Pearson 1934)."""
    return float(1 - ((1 - confidence) / 2) ** (1 / items))


def bound_constant_mean(value: float, items: int, confidence: float, lowest: float = 0.0) -> Interval:
    """Interval of a mean of values from `lowest` to 1, if all items have the same value and resampling has no spread.

    At most the share `bound_unseen_share` of all items has other values, at worst `lowest` or 1.
    """
    unseen = bound_unseen_share(items, confidence)
    return Interval(value, value - unseen * (value - lowest), value + unseen * (1 - value))


def estimate_needed_items(
    difference: Interval, items: int, wanted: float, confidence: float, power: float
) -> int | None:
    """How many items would show a paired difference of `wanted` with probability `power`, at the level of `confidence`.

    The spread of a difference follows from its interval over `items` items; the standard error falls with the root of
    their number (Connor 1987 for paired proportions). None if there is no interval.
    """
    from scipy.stats import norm

    if difference.low is None or difference.high is None:
        return None
    level = float(norm.ppf((1 + confidence) / 2))
    error = (difference.high - difference.low) / (2 * level)
    return math.ceil(items * ((level + float(norm.ppf(power))) * error / wanted) ** 2)


def compute_mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Two-sided exact p-value of McNemar's test (1947) from the two discordant counts. 1 if both are zero."""
    from scipy.stats import binomtest

    if only_first + only_second == 0:
        return 1.0
    return float(binomtest(only_first, only_first + only_second, 0.5).pvalue)


def compute_permutation_p_value(differences: NDArray[np.float32], seed: int, samples: int = 9999) -> float:
    """Two-sided p-value of a mean paired difference, by random signs (Fisher 1935).

    If both systems are equally good, each item's difference is as likely positive as negative. The p-value is the share
    of draws whose mean is at least as far from zero as the observed mean. The observation counts as one draw (Phipson
    and Smyth 2010), so p is never 0. It is 1 if no item differs.
    """
    import numpy as np

    nonzero = differences[differences != 0].astype(np.float64)
    if not len(nonzero):
        return 1.0
    rng = np.random.default_rng(seed)
    observed, extreme, done = abs(nonzero.sum()) * (1 - 1e-9), 0, 0
    step = max(1, _CHUNK_CELLS // len(nonzero))
    while done < samples:
        rows = min(step, samples - done)
        signs = rng.integers(0, 2, size=(rows, len(nonzero))) * 2 - 1
        extreme += int((np.abs(signs @ nonzero) >= observed).sum())
        done += rows
    return (extreme + 1) / (samples + 1)


def compute_wilson_interval(correct: int, items: int, confidence: float) -> Interval:
    """Score interval of a share (Wilson 1927). It holds for few items, and if none or all are right."""
    from scipy.stats import binomtest

    if not items:
        return Interval(None)
    bounds = binomtest(correct, items).proportion_ci(confidence, method="wilson")
    value = correct / items
    return Interval(value, min(float(bounds.low), value), max(float(bounds.high), value))


def compute_paired_score_interval(only_first: int, only_second: int, items: int, confidence: float) -> Interval:
    """Score interval of a paired difference of two accuracies (Tango 1998).

    It has the differences that the score test does not reject. Unlike a bootstrap it is not too narrow if few items
    separate the two systems, so claims that a difference is small rest on it.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    if not items:
        return Interval(None)
    value = (only_first - only_second) / items
    level = float(norm.ppf((1 + confidence) / 2))

    def find(bound: float, sign: int) -> float:
        def distance(difference: float) -> float:
            return compute_paired_score(only_first, only_second, items, difference) - sign * level

        # At the very end of the range the spread may be zero, and the score infinite.
        edge = bound * (1 - 1e-12)
        return bound if distance(edge) * distance(value) >= 0 else float(brentq(distance, edge, value, xtol=1e-12))

    return Interval(value, find(-1.0, 1), find(1.0, -1))


def compute_paired_score(only_first: int, only_second: int, items: int, difference: float) -> float:
    """The score statistic of the hypothesis that two accuracies differ by `difference` (Tango 1998).

    It is standard normal if that is the difference. The variance is that of the most likely shares under the
    hypothesis. At a difference of 0 its square is McNemar's statistic.
    """
    b, c = only_first, only_second
    linear = -b - c + (2 * items - b + c) * difference
    constant = -c * difference * (1 - difference)
    share = (math.sqrt(max(0.0, linear**2 - 8 * items * constant)) - linear) / (4 * items)
    variance = items * (2 * share + difference * (1 - difference))
    distance = b - c - items * difference
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)


def compute_non_inferiority_p_value(only_first: int, only_second: int, items: int, margin: float) -> float:
    """One-sided p-value of the hypothesis that the first system is worse by `margin` or more (Nam 1997, Tango 1998)."""
    from scipy.stats import norm

    return float(norm.sf(compute_paired_score(only_first, only_second, items, -margin)))


def adjust_p_values(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of a family of tests (Holm 1979).

    With a bound of 0.05 on the adjusted values, the chance that any test of the family finds a difference where there
    is none is at most 5 %.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted
