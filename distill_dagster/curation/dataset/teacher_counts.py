"""Count the rows of a dataset, and those it leaves out, by the teacher that answered them."""

from __future__ import annotations

from typing import Any

import polars as pl

PEOPLE = "people"
"""Who answered rows without a teacher."""


def count_rows_by_teacher(kept: pl.LazyFrame, left_out: pl.LazyFrame) -> list[dict[str, Any]]:
    """Rows by teacher: `teacher`, `train`, `validation` and `rejected`, the teacher with most kept rows first.

    Args:
        kept, left_out: schemas DATASET and REJECTED.
    """
    places = [kept.select("teacher", "split"), left_out.select("teacher", pl.lit("rejected").alias("split"))]
    counts = pl.concat(places).group_by("teacher", "split").len().collect(engine="streaming")
    lines: dict[str | None, dict[str, int]] = {}
    for teacher, split, rows in counts.iter_rows():
        lines.setdefault(teacher, {"train": 0, "validation": 0, "rejected": 0})[split] += rows
    ranked = sorted(lines.items(), key=lambda one: (-one[1]["train"] - one[1]["validation"], one[0] or ""))
    return [{"teacher": PEOPLE if teacher is None else teacher} | counts for teacher, counts in ranked]
