"""Filter `low_confidence`: the teacher is unsure."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, concat_expr
from distill_dagster.curation.task_view import TaskView


class LowConfidence(Filter):
    """The candidate's probability in its soft label is below `min_confidence`.

    Few rows of a hard label pass. `balance.floors`, such as `{label: 20}`, keeps the most confident of the others. Soft
    labels need this filter less: they say how unsure the teacher is, so unsure rows teach what they should.
    """

    name = "low_confidence"
    reason = "low_confidence"
    defaults = FilterDefaults(threshold="min_confidence")
    kept = FilterExample({"confidence": 0.8}, {"min_confidence": 0.5})
    dropped = FilterExample({"confidence": 0.4}, {"min_confidence": 0.5})

    min_confidence: float = Field(default=0.0, ge=0, le=1, description="probability of the candidate")

    def is_active(self) -> bool:
        return self.enabled and self.min_confidence > 0

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("confidence").fill_null(0) < self.min_confidence

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr("confidence ", pl.col("confidence").round(3))
