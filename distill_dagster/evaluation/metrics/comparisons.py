"""Compare two systems on the items that both answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_dagster.evaluation.metrics.system_arrays import SystemArrays, is_binary
from distill_dagster.evaluation.metrics.types import MCNEMAR, PERMUTATION, SystemComparison
from distill_dagster.evaluation.statistics import (
    Interval,
    bound_constant_mean,
    bound_unseen_share,
    compute_difference_interval,
    compute_mcnemar_p_value,
    compute_percentile_interval,
    compute_permutation_p_value,
    divide_or_nan,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distill_dagster.config import EvaluationSpec
    from distill_dagster.kinds import Kind


def compare_systems(
    a: SystemArrays, b: SystemArrays, sums: NDArray[np.float64], spec: EvaluationSpec, kind: Kind | None
) -> SystemComparison:
    level = spec.confidence
    both = (a.present * b.present) > 0
    n = int(both.sum())
    first, second = float(a.scores[both].sum()), float(b.scores[both].sum())
    only_first = int((both & (a.scores > b.scores)).sum())
    only_second = int((both & (b.scores > a.scores)).sum())
    draws = divide_or_nan(sums[:, 1] - sums[:, 2], sums[:, 0])
    ratio = compute_percentile_interval(
        first / second if second else None, divide_or_nan(sums[:, 1], sums[:, 2]), level
    )
    if not is_binary(kind):
        differences = (a.scores - b.scores)[both]
        difference = compute_percentile_interval((first - second) / n if n else None, draws, level)
        if n and differences.min() == differences.max():
            difference = bound_constant_mean(float(differences[0]), n, level, lowest=-1.0)
        p_value, test = compute_permutation_p_value(differences, spec.seed), PERMUTATION
    else:
        difference = compute_difference_interval(only_first, only_second, n, draws, level)
        p_value, test = compute_mcnemar_p_value(only_first, only_second), MCNEMAR
    if second and only_first + only_second == 0:  # resampling shows no spread: use the bound that the difference has
        margin = bound_unseen_share(n, level) * n / second
        ratio = Interval(1.0, max(0.0, 1 - margin), 1 + margin)
    return SystemComparison(a.name, b.name, n, difference, ratio, only_first, only_second, p_value, test)
