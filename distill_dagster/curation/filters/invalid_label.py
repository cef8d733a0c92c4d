"""Filter `invalid_label`: answers that are not a label of the task."""

from __future__ import annotations

import polars as pl

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample
from distill_dagster.curation.task_view import TaskView


class InvalidLabel(Filter):
    """The answer is not a label of the task."""

    name = "invalid_label"
    reason = "invalid_label"
    defaults = FilterDefaults(always_on=True)
    kept = FilterExample({"answer": "refund"}, kind="classification", labels=("refund", "login"))
    dropped = FilterExample({"answer": "Refunds"}, kind="classification", labels=("refund", "login"))

    def drop_expr(self, task: TaskView) -> pl.Expr:
        labels = pl.Series([to_canonical_json(label) for label in task.labels], dtype=pl.String)
        unknown = pl.col("answer").is_null() | ~pl.col("answer").is_in(labels.implode())
        return (pl.col("answer_kind") == "label") & unknown

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return pl.coalesce("answer", "error")
