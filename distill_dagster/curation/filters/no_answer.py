"""Filter `no_answer`: candidates without an answer."""

from __future__ import annotations

import polars as pl

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, error_expr
from distill_dagster.curation.task_view import TaskView


class NoAnswer(Filter):
    """There is no answer: the request failed, the provider filtered it, or it was never sent."""

    name = "no_answer"
    reason = "no_answer"
    defaults = FilterDefaults(always_on=True)
    kept = FilterExample({})
    dropped = FilterExample({"answer": None, "status": "failed", "error": "timeout"})

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("status").ne_missing("ok")

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return error_expr()
