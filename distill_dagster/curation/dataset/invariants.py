"""Checks of the dataset: nothing lost, no contamination, enough rows and slices."""

from __future__ import annotations

from typing import Any

import polars as pl

from distill_dagster.core.checks import CheckResult
from distill_dagster.tables.validation import Table


def check_dataset(
    candidates: int,
    dataset: Table,
    rejected: Table,
    held_out: set[str],
    labels: list[str],
    min_rows: int,
) -> list[CheckResult]:
    """Invariants 1 and 2, and whether there is enough to train on.

    Args:
        candidates: how many there were.
    """
    dataset, reasons = dataset.lazy(), rejected.lazy().select("drop_reason").collect(engine="streaming")["drop_reason"]
    sides = dataset.select("split").collect(engine="streaming")["split"]
    train_rows = int((sides == "train").sum())
    balance = {"candidates": candidates, "kept": len(sides), "rejected": len(reasons)}
    leaked = _find_held_out_rows(dataset, held_out)
    present = set[str]()
    if labels:
        train = dataset.filter(pl.col("split") == "train").select(pl.col("answer").unique())
        present = set(train.collect(engine="streaming")["answer"].str.json_decode(pl.String))
    absent = [label for label in labels if label not in present]
    return [
        CheckResult(
            "nothing_lost", len(sides) + len(reasons) == candidates and not reasons.null_count(), details=balance
        ),
        CheckResult("no_contamination", not leaked, details={"prompt_ids": ", ".join(leaked[:20])}),
        CheckResult(
            "enough_rows",
            train_rows >= min_rows and (not labels or len(present) >= 2),
            details={"train_rows": train_rows, "min_rows": min_rows, "labels": len(present)},
        ),
        CheckResult("label_coverage", not absent, "warning", {"labels_without_rows": ", ".join(absent)}),
    ]


def _find_held_out_rows(dataset: pl.LazyFrame, held_out: set[str]) -> list[str]:
    """The ids of rows with the very text of a golden or dev row."""
    from distill_dagster.curation.text_columns import build_text_keys, extract_user_texts

    keys = pl.Series(sorted(held_out), dtype=pl.String)

    def work(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("prompt_id").filter(
            build_text_keys(extract_user_texts(rows["messages"])).is_in(keys.implode())
        )

    read = dataset.select("prompt_id", "messages").map_batches(work, schema={"prompt_id": pl.String}, streamable=True)
    return read.collect(engine="streaming")["prompt_id"].to_list()


def check_slices(slices: list[dict[str, Any]], wanted: int) -> list[CheckResult]:
    """Whether enough slices give rows; `slices` has one line each with `slice`, `gives` and `why`."""
    silent = [line["slice"] for line in slices if line["gives"] == "nothing"]
    behind = [f"{line['slice']}: {line['why']}" for line in slices if line["gives"] != "its rows"]
    giving = len(slices) - len(silent)
    found = {"slices_with_rows": giving, "min_slices": wanted, "slices_without_rows": ", ".join(silent)}
    return [
        CheckResult("enough_slices", giving >= wanted, details=found),
        CheckResult("slices_current", not behind, "warning", {"slices": "\n".join(behind[:50])}),
    ]
