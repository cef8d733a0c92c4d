"""Metrics as tables: the confusion of labels, and one row per system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_dagster.evaluation.metrics.types import GOLDEN, NO_ANSWER, Metrics, SystemFacts, SystemScore

if TYPE_CHECKING:
    import pandas as pd


def build_confusion_table(score: SystemScore, labels: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Column names (labels, then `NO_ANSWER` if needed) and counts: one row per reference, one column per answer."""
    columns = list(labels) + [NO_ANSWER] * any(answer == NO_ANSWER for _, answer, _ in score.confusion)
    counts = [[0] * len(columns) for _ in labels]
    index = {name: i for i, name in enumerate(columns)}
    for reference, answer, items in score.confusion:
        counts[index[reference]][index[answer]] = items
    return columns, counts


def build_metrics_frame(metrics: Metrics, split: str = GOLDEN) -> pd.DataFrame:
    """One row per system, for `check_metrics_table`. Latency in milliseconds, size in bytes, NaN for unknown."""
    import pandas as pd

    rows = []
    for name, system in metrics.splits[split].systems.items():
        facts = metrics.facts.get(name, SystemFacts())
        rows.append(
            {
                "system": name,
                "score": system.score.value,
                "low": system.score.low,
                "high": system.score.high,
                "second_score": system.second_score.value,
                "p50_ms": None if system.latency.p50 is None else 1000 * system.latency.p50,
                "p95_ms": None if system.latency.p95 is None else 1000 * system.latency.p95,
                "parameters": facts.parameters,
                "bytes": facts.bytes,
                "cost_usd_per_1k": facts.cost_usd_per_1k,
            }
        )
    frame = pd.DataFrame(rows)
    return frame.astype({name: "float64" for name in frame.columns if name != "system"})
