"""The check that every system answered every held-out item."""

from __future__ import annotations

import polars as pl

from distill_dagster.core.checks import CheckResult


def check_predictions_complete(predictions: pl.DataFrame) -> CheckResult:
    held_out = predictions.filter(pl.col("split").is_in(["golden", "dev"]))
    counts = held_out.group_by("split", "system").len().sort("split", "system")
    even = counts.group_by("split").agg(pl.col("len").n_unique().alias("n"))["n"].to_list() == [1] * 2
    found = {f"{split} {system}": n for split, system, n in counts.iter_rows()}
    return CheckResult("complete", even, found=found)
