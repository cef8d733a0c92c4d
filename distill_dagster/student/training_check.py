"""The checks `loss_fell` and `rows_fit_objective` of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distill_dagster.config.objective import MATCHING_OBJECTIVES
from distill_dagster.core.checks import CheckResult, CheckSpec

LOSS_FELL_CHECK = CheckSpec("loss_fell", "The training loss is lower at the end than at the start.")


ROWS_FIT_CHECK = CheckSpec(
    "rows_fit_objective", "The rows have what the objective learns: probabilities of labels, or reasoning."
)


def check_loss_fell(losses: list[float]) -> CheckResult:
    """Check that the mean of the last fifth of the logged losses is below that of the first fifth."""
    if len(losses) < 2:
        return CheckResult("loss_fell", True, "warning", {"logged_steps": len(losses)})
    part = max(1, len(losses) // 5)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    return CheckResult("loss_fell", last < first, "warning", {"first": round(first, 4), "last": round(last, 4)})


def check_rows_fit_objective(
    objective: Mapping[str, Any], rows: int, rows_with_soft_labels: int | None, rows_without_reasoning: int
) -> CheckResult:
    """Check that the rows of a training have what its objective learns.

    It fails if a student of probabilities has no row with any. So it does if most rows of a student that writes its
    reasoning have none: they teach an answer behind a prompt that it is never asked with.

    Args:
        objective: the objective with its settings. `weight` is that of the teacher's probabilities of labels.
        rows_with_soft_labels: None if they were not counted.
    """
    passed = rows_without_reasoning <= 0.5 * rows
    if objective.get("kind") in ("soft_label", *MATCHING_OBJECTIVES) and objective["weight"] > 0:
        passed = passed and rows_with_soft_labels != 0
    details = {"rows_with_soft_labels": rows_with_soft_labels, "rows_without_reasoning": rows_without_reasoning}
    return CheckResult("rows_fit_objective", passed, "warning", {"rows": rows, **details})
