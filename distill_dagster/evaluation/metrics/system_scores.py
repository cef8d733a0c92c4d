"""Score one system on one split: mean with interval, slices, labels, confusion, latency."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_dagster.evaluation.metrics.slices import score_slices
from distill_dagster.evaluation.metrics.system_arrays import SystemArrays, is_binary
from distill_dagster.evaluation.metrics.types import NO_ANSWER, LabelScore, LatencySummary, SystemScore
from distill_dagster.evaluation.statistics import (
    Interval,
    bound_constant_mean,
    compute_accuracy_interval,
    compute_percentile_interval,
    compute_wilson_interval,
    divide_or_nan,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distill_dagster.config import EvaluationSpec
    from distill_dagster.kinds import Kind


def compute_system_score(
    s: SystemArrays,
    truth: NDArray[np.int64],
    slices: list[str],
    labels: list[str],
    sums: NDArray[np.float64],
    spec: EvaluationSpec,
    kind: Kind | None,
) -> SystemScore:
    import numpy as np

    mask, level = s.present > 0, spec.confidence
    n = int(mask.sum())
    per_slice = score_slices(s, slices, spec, kind)
    draws = divide_or_nan(sums[:, 1], sums[:, 0])
    wilson = None
    if is_binary(kind):
        wilson = compute_wilson_interval(int(s.scores.sum()), n, level)
        score = compute_accuracy_interval(int(s.scores.sum()), n, draws, level)
    elif n and s.scores[mask].min() == s.scores[mask].max():
        score = bound_constant_mean(float(s.scores[mask][0]), n, level)
    else:
        score = compute_percentile_interval(float(s.scores[mask].mean()) if n else None, draws, level)
    latency = _summarize_latency(s.latencies)
    if kind is not None:
        second_score = Interval(None)
        if kind.second_metric and n:
            mean = float(s.second_scores[mask].mean())
            second_score = compute_percentile_interval(mean, divide_or_nan(sums[:, 2], sums[:, 0]), level)
        return SystemScore(s.name, n, score, second_score, latency, per_slice, (), (), wilson)
    cells, items = np.unique(np.stack([truth[mask], s.answers[mask]]), axis=1, return_counts=True)
    return SystemScore(
        system=s.name,
        n=n,
        score=score,
        second_score=_compute_macro_f1(truth[mask], s.answers[mask], sums[:, 2:], level),
        latency=latency,
        slices=per_slice,
        per_label=_compute_label_scores(truth[mask], s.answers[mask], labels),
        confusion=tuple(
            (labels[t], labels[a] if a >= 0 else NO_ANSWER, int(k)) for (t, a), k in zip(cells.T, items, strict=True)
        ),
        wilson=wilson,
    )


def _compute_macro_f1(
    truth: NDArray[np.int64], answers: NDArray[np.int64], sums: NDArray[np.float64], level: float
) -> Interval:
    """Macro-F1 of the split. Each bootstrap sample averages F1 over the labels that are a reference in it."""
    import numpy as np
    from sklearn.metrics import f1_score

    value = float(f1_score(truth, answers, labels=np.unique(truth), average="macro", zero_division=0.0))
    actual, answered, hits = np.split(sums, 3, axis=1)
    f1 = divide_or_nan(2 * hits, actual + answered)
    f1[actual == 0] = np.nan
    drawn = np.isfinite(f1)
    return compute_percentile_interval(
        value, divide_or_nan(np.where(drawn, f1, 0).sum(axis=1), drawn.sum(axis=1)), level
    )


def _compute_label_scores(
    truth: NDArray[np.int64], answers: NDArray[np.int64], labels: list[str]
) -> tuple[LabelScore, ...]:
    rows = []
    for code, label in enumerate(labels):
        actual, answered = int((truth == code).sum()), int((answers == code).sum())
        hits = int(((truth == code) & (answers == code)).sum())
        precision, recall = hits / answered if answered else None, hits / actual if actual else None
        rows.append(LabelScore(label, actual, answered, precision, recall))
    return tuple(rows)


def _summarize_latency(values: list[float]) -> LatencySummary:
    import numpy as np

    if not values:
        return LatencySummary(0, None, None, None)
    p50, p95 = np.percentile(values, [50, 95])
    return LatencySummary(len(values), float(p50), float(p95), float(np.mean(values)))
