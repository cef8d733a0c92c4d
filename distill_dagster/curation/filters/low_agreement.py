"""Filter `low_agreement`: the samples of the teacher disagree."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, concat_expr
from distill_dagster.curation.task_view import TaskView


class LowAgreement(Filter):
    """A smaller share of the teacher's samples than `min_agreement` agrees with the candidate."""

    name = "low_agreement"
    reason = "low_agreement"
    defaults = FilterDefaults(threshold="min_agreement")
    kept = FilterExample({"agreement": 2 / 3}, {"min_agreement": 0.6})
    dropped = FilterExample({"agreement": 1 / 3}, {"min_agreement": 0.6})

    min_agreement: float = Field(default=0.0, ge=0, le=1, description="share of the samples")

    def is_active(self) -> bool:
        return self.enabled and self.min_agreement > 0

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("agreement").fill_null(0) < self.min_agreement

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr("agreement ", pl.col("agreement").round(3))
