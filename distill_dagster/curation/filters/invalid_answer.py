"""Filter `invalid_answer`: responses without an answer of the kind of task."""

from __future__ import annotations

import polars as pl

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample
from distill_dagster.curation.task_view import TaskView


class InvalidAnswer(Filter):
    """The response contains no answer of the task's kind: no number, no JSON of the schema, none of the options."""

    name = "invalid_answer"
    reason = "invalid_answer"
    defaults = FilterDefaults(always_on=True)
    kept = FilterExample({"answer": 12}, kind="math")
    dropped = FilterExample(
        {"answer": None, "error": "the answer is not a number: no number in 'a dozen'"}, kind="math"
    )

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("answer").is_null() & (pl.col("answer_kind") != "label")

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("error")
