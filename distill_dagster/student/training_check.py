"""The check `loss_fell` of an adapter."""

from __future__ import annotations

from distill_dagster.core.checks import CheckResult, CheckSpec

LOSS_FELL_CHECK = CheckSpec("loss_fell", "The training loss is lower at the end than at the start.")


def check_loss_fell(losses: list[float]) -> CheckResult:
    """Check that the mean of the last fifth of the logged losses is below that of the first fifth."""
    if len(losses) < 2:
        return CheckResult("loss_fell", True, "warning", {"logged_steps": len(losses)})
    part = max(1, len(losses) // 5)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    return CheckResult("loss_fell", last < first, "warning", {"first": round(first, 4), "last": round(last, 4)})
