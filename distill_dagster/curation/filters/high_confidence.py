"""Filter `high_confidence`: the teacher is too sure."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, concat_expr
from distill_dagster.curation.task_view import TaskView


class HighConfidence(Filter):
    """The candidate's probability is above `max_confidence`. This drops rows that are too easy.

    Answers of people are kept.
    """

    name = "high_confidence"
    reason = "high_confidence"
    defaults = FilterDefaults(threshold="max_confidence")
    kept = FilterExample({"confidence": 0.8}, {"max_confidence": 0.95})
    dropped = FilterExample({"confidence": 0.99}, {"max_confidence": 0.95})

    max_confidence: float = Field(default=1.0, ge=0, le=1, description="probability of the candidate")

    def is_active(self) -> bool:
        return self.enabled and self.max_confidence < 1

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("teacher").is_not_null() & (pl.col("confidence") > self.max_confidence)

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr("confidence ", pl.col("confidence").round(3))
