"""Finish reason and number of tokens of the completion that a candidate comes from."""

from __future__ import annotations

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView


def _copy_completion_fields(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    """Copy two columns that the stage adds to candidates if it knows their completions. Otherwise they are null."""
    types = {"finish_reason": pl.String, "completion_tokens": pl.Int64}
    columns = [
        pl.col(name) if name in rows.columns else pl.lit(None, dtype=dtype).alias(name) for name, dtype in types.items()
    ]
    return rows.with_columns(columns).select(list(types))  # a select of literals alone would give one row


COMPLETION_SCORER = Scorer(
    "sample", "1", ("finish_reason", "completion_tokens"), _copy_completion_fields, reads_rows_only=False
)
