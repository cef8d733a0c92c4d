"""Score and compare systems within slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distill_dagster.evaluation.metrics.system_arrays import SystemArrays, is_binary
from distill_dagster.evaluation.metrics.types import SliceComparison, SliceScore
from distill_dagster.evaluation.statistics import (
    Interval,
    adjust_p_values,
    compute_bootstrap_mean,
    compute_mcnemar_p_value,
    compute_paired_score_interval,
    compute_permutation_p_value,
    compute_wilson_interval,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distill_dagster.config import EvaluationSpec
    from distill_dagster.kinds import Kind


def score_slices(
    s: SystemArrays, slices: Sequence[str], spec: EvaluationSpec, kind: Kind | None
) -> tuple[SliceScore, ...]:
    """Score one system in each slice, in alphabetical order. `slices` has the slice of each item."""
    found = []
    for name, mask in _select_slices(slices, s.present > 0):
        scores = s.scores[mask]
        if is_binary(kind):
            score = compute_wilson_interval(int(scores.sum()), len(scores), spec.confidence)
        else:
            score = compute_bootstrap_mean(scores, spec.bootstrap_samples, spec.seed, spec.confidence)
        found.append(SliceScore(name, len(scores), score))
    return tuple(found)


def compare_slices(
    a: SystemArrays, b: SystemArrays, slices: Sequence[str], spec: EvaluationSpec, kind: Kind | None
) -> tuple[SliceComparison, ...]:
    """Compare two systems in each slice. The family of Holm's correction are the slices."""
    found = []
    for name, mask in _select_slices(slices, (a.present * b.present) > 0):
        only_first, only_second = int((a.scores > b.scores)[mask].sum()), int((b.scores > a.scores)[mask].sum())
        difference, p_value = compare_scores(a, b, mask, spec, kind)
        found.append(SliceComparison(name, int(mask.sum()), difference, only_first, only_second, p_value, p_value))
    adjusted = adjust_p_values([c.p_value for c in found])
    return tuple(replace(c, adjusted_p_value=p) for c, p in zip(found, adjusted, strict=True))


def compare_scores(
    a: SystemArrays, b: SystemArrays, mask: NDArray[np.bool_], spec: EvaluationSpec, kind: Kind | None
) -> tuple[Interval, float]:
    """The paired difference on the items of `mask`, with the p-value of the paired test.

    The interval is the score interval (Tango 1998), or a bootstrap if scores are graded.
    """
    differences = (a.scores - b.scores)[mask]
    if not is_binary(kind):
        interval = compute_bootstrap_mean(differences, spec.bootstrap_samples, spec.seed, spec.confidence, lowest=-1.0)
        return interval, compute_permutation_p_value(differences, spec.seed)
    counts = int((differences > 0).sum()), int((differences < 0).sum())
    interval = compute_paired_score_interval(*counts, len(differences), spec.confidence)
    return interval, compute_mcnemar_p_value(*counts)


def _select_slices(slices: Sequence[str], mask: NDArray[np.bool_]) -> list[tuple[str, NDArray[np.bool_]]]:
    """The slices with items of `mask`, each with these items."""
    import numpy as np

    names = np.array(slices, dtype=object)
    return [(str(name), mask & (names == name)) for name in sorted(set(names[mask]))]
