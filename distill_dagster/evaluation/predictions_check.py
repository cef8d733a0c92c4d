"""The check `complete` of the predictions table."""

from __future__ import annotations

import polars as pl

from distill_dagster.core.checks import CheckResult


def check_predictions_complete(predictions: pl.DataFrame) -> CheckResult:
    """Check that every system has the same number of golden items, and the same number of dev items."""
    held_out = predictions.filter(pl.col("split").is_in(["golden", "dev"]))
    counts = held_out.group_by("split", "system").len().sort("split", "system")
    is_even = counts.group_by("split").agg(pl.col("len").n_unique().alias("n"))["n"].to_list() == [1] * 2
    details = {f"{split} {system}": n for split, system, n in counts.iter_rows()}
    return CheckResult("complete", is_even, details=details)
