"""How often a judge prefers the student's answer to the teacher's, from both orders."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from distill_dagster.evaluation.statistics import (
    Interval,
    compute_bootstrap_mean,
    compute_mcnemar_p_value,
    compute_wilson_interval,
)

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.config import EvaluationSpec


@dataclass(frozen=True)
class WinRate:
    """What a judge prefers, over the golden items with a result in both orders.

    The judge sees both answers twice, with the order swapped. Only the same choice both times is a win or a loss; two
    different choices are a tie, and so are equal answers, which the judge is not asked about.

    Attributes:
        first: the system whose win rate it is.
        second: the system that it is compared with.
        judge: the model that judged; None if it was not asked.
        items: wins, ties and losses together.
        rate: (wins + ties / 2) / items. Items are resampled, each with both of its results (Miller 2024, "Adding Error
            Bars to Evals"), since the two orders of an item are not independent.
        p_value: two-sided sign test of wins against losses.
        asked: the items that the judge was asked about and answered in both orders.
        flip_rate: the share of `asked` whose choice changes with the order. None if nothing was asked.
        first_slot_rate: the share of choices for the answer that is shown first; 0.5 for a judge without a preference.
        left_out: items without a choice of the judge in one of the orders.
    """

    first: str
    second: str
    judge: str | None
    items: int
    wins: int
    ties: int
    losses: int
    rate: Interval
    p_value: float
    asked: int
    flip_rate: float | None
    first_slot_rate: float | None
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"rate": self.rate.to_dict()}


def compute_win_rate(pairs: pl.DataFrame, spec: EvaluationSpec) -> WinRate:
    """Compute the win rate from a table with the schema `JUDGED_PAIRS`.

    Raises:
        ValueError: an item does not have one row for each order.
    """
    import numpy as np

    first = pairs["first"][0] if pairs.height else ""
    second = pairs["second"][0] if pairs.height else ""
    results: list[float] = []
    flips, first_slot, left_out, asked = 0, 0, 0, 0
    for (item,), rows in pairs.group_by("item_id", maintain_order=True):
        if sorted(rows["shown_first"]) != sorted((first, second)):
            raise ValueError(f"judged pairs: item {item} does not have one row for each order")
        winners, is_asked = rows["winner"].to_list(), rows["decided_by"][0] == "judge"
        if is_asked and None in winners:
            left_out += 1
            continue
        same = winners[0] == winners[1]
        results.append(0.5 if not same or winners[0] is None else float(winners[0] == first))
        if is_asked:
            asked += 1
            flips += not same
            first_slot += sum(shown == winner for shown, winner in rows.select("shown_first", "winner").iter_rows())
    wins, losses = results.count(1.0), results.count(0.0)
    judges = pairs["judge"].drop_nulls()
    return WinRate(
        first=first,
        second=second,
        judge=judges[0] if len(judges) else None,
        items=len(results),
        wins=wins,
        ties=len(results) - wins - losses,
        losses=losses,
        rate=_compute_rate(np.array(sorted(results), dtype=np.float32), spec),
        p_value=compute_mcnemar_p_value(wins, losses),
        asked=asked,
        flip_rate=flips / asked if asked else None,
        first_slot_rate=first_slot / (2 * asked) if asked else None,
        left_out=left_out,
    )


def _compute_rate(results: Any, spec: EvaluationSpec) -> Interval:
    """The mean with its bootstrap interval, or a bound that holds if all items have the same result."""
    items = len(results)
    if items and results[0] == results[-1] != 0.5:
        return compute_wilson_interval(int(results.sum()), items, spec.confidence)
    return compute_bootstrap_mean(results, spec.bootstrap_samples, spec.seed, spec.confidence)
