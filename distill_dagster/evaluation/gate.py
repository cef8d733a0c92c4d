"""The teacher gate: compare the teacher's score on dev with a minimum and with the untrained student."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_dagster.core.checks import CheckResult
from distill_dagster.core.formatting import count_noun
from distill_dagster.evaluation.statistics import Interval, compute_bootstrap_sums, compute_percentile_interval

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.config import EvaluationSpec, GateSpec
    from distill_dagster.kinds import Kind

GATE_CHECK = "teacher_good_enough"


@dataclass(frozen=True)
class GateScores:
    """Mean scores on dev, 0 to 1, with bootstrap intervals. `base` and `difference` are None if base did not answer."""

    metric: str
    teacher: Interval
    base: Interval | None = None
    difference: Interval | None = None


def compute_gate_scores(kind: Kind, rows: pl.DataFrame, spec: EvaluationSpec) -> GateScores:
    """Score the systems `teacher` and `base` of a predictions table, paired by item."""
    import numpy as np

    scores: dict[str, dict[str, float]] = {"teacher": {}, "base": {}}
    for system, item, answer, reference in rows.select("system", "item_id", "answer", "reference").iter_rows():
        parsed = json.loads(answer) if answer is not None else None
        scores[system][item] = kind.score(parsed, json.loads(reference))
    items = sorted(scores["teacher"])
    if not items:
        return GateScores(kind.metric, Interval(None))
    has_base = bool(scores["base"])
    columns = [[scores["teacher"][i] for i in items]]
    if has_base:
        columns.append([scores["base"][i] for i in items])
    table = np.array(columns, dtype=np.float32).T
    draws = compute_bootstrap_sums(table, spec.bootstrap_samples, spec.seed) / len(items)
    means = table.mean(axis=0, dtype=np.float64)
    teacher = compute_percentile_interval(float(means[0]), draws[:, 0], spec.confidence)
    if not has_base:
        return GateScores(kind.metric, teacher)
    base = compute_percentile_interval(float(means[1]), draws[:, 1], spec.confidence)
    difference = compute_percentile_interval(float(means[0] - means[1]), draws[:, 0] - draws[:, 1], spec.confidence)
    return GateScores(kind.metric, teacher, base, difference)


def build_gate_check(
    scores: GateScores, gate: GateSpec, answered: int, expected: int, recorded: bool = False
) -> CheckResult:
    """Build the check `teacher_good_enough`. Point estimates decide, intervals are only shown.

    Args:
        answered: the number of dev rows that the teacher answered.
        expected: the number of dev rows that it should answer. If it answered fewer than half, the check fails.
        recorded: whether the teacher is a recording, which costs nothing. Then too few answers do not fail the check.
    """
    value, reasons = scores.teacher.value, []
    if value is None or 2 * answered < expected:
        if not recorded:
            rows = count_noun(expected, "dev row")
            reasons.append(f"only {answered} of {rows} got an answer: fix what failed there, and run again")
    else:
        if gate.teacher_min is not None and value < gate.teacher_min:
            reasons.append(f"gate.teacher_min is {gate.teacher_min}")
        gain = scores.difference.value if scores.difference else None
        # A sum of float32 may be just below a bound that it reaches. One item always counts for more than 1e-6.
        if gain is not None and gate.teacher_over_base is not None and gain < gate.teacher_over_base - 1e-6:
            reasons.append(
                f"the untrained student scores {scores.base.value:.4g} on dev, and gate.teacher_over_base is "  # type: ignore[union-attr]
                f"{gate.teacher_over_base:g}: there is nothing to distil"
            )
    details: dict[str, str | float | int] = {"items": answered, "metric": scores.metric}
    for name, interval in (("teacher", scores.teacher), ("base", scores.base), ("difference", scores.difference)):
        if interval is not None and interval.value is not None:
            details[name] = round(interval.value, 4)
    if reasons:
        details["why"] = (
            "; ".join(reasons)
            + ". Fix the teacher's prompt, examples or model. To ask the slices anyway, lower `gate` in "
            "task.yaml"
        )
    return CheckResult(GATE_CHECK, not reasons, details=details)
