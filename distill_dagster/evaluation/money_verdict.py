"""Judge whether the student saves money against the teacher."""

from __future__ import annotations

from typing import Literal

from distill_dagster.evaluation.formatting import format_days, format_dollars
from distill_dagster.evaluation.metrics import DISTILLED, TEACHER, Metrics

MoneyResult = Literal["saves", "late", "costs"]
"""What the student's answers cost next to the teacher's. `late`: less, but it takes longer than `PAYBACK_DAYS`."""
PAYBACK_DAYS = 365
"""A distillation that takes longer to pay for itself, at the traffic to expect, saves no money: models age."""


def judge_money(metrics: Metrics) -> MoneyResult | None:
    """Whether the student saves money against the teacher; None if a cost is unknown."""
    own, teacher = get_costs(metrics, DISTILLED, TEACHER)
    if own is None or teacher is None:
        return None
    if own >= teacher:
        return "costs"
    days = _get_payback_days(metrics)
    return "late" if days is not None and days > PAYBACK_DAYS else "saves"


def get_costs(metrics: Metrics, *systems: str) -> tuple[float | None, ...]:
    """USD for 1,000 answers of each system; None if it is unknown."""
    return tuple(metrics.facts[name].cost_usd_per_1k if name in metrics.facts else None for name in systems)


def _get_payback_days(metrics: Metrics) -> float | None:
    """In how many days the distillation has paid for itself; None if the traffic to expect is not set."""
    day = metrics.distillation.day if metrics.distillation is not None else None
    return day.days if day is not None else None


def describe_money(metrics: Metrics) -> str:
    """A sentence on the money that the student does not save; empty if it saves some, or a cost is unknown."""
    result, days = judge_money(metrics), _get_payback_days(metrics)
    own, teacher = get_costs(metrics, DISTILLED, TEACHER)
    costs = f"1,000 of its answers cost {format_dollars(own)}, and {format_dollars(teacher)} with the teacher"
    if result == "costs":
        return f"The student saves no money: {costs}."
    if result == "late" and days is not None:
        return f"The student saves little: {costs}, and it has paid for itself only after {format_days(days)}."
    return ""
