"""Filter `teachers_disagree`: several teachers disagree."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, concat_expr
from distill_dagster.curation.task_view import TaskView


class TeachersDisagree(Filter):
    """A smaller share of several teachers than `min_teacher_agreement` gave the candidate's answer."""

    name = "teachers_disagree"
    reason = "teachers_disagree"
    defaults = FilterDefaults(threshold="min_teacher_agreement")
    kept = FilterExample({"teacher_agreement": 1.0}, {"min_teacher_agreement": 1})
    dropped = FilterExample({"teacher_agreement": 0.5}, {"min_teacher_agreement": 1})

    min_teacher_agreement: float = Field(default=0.0, ge=0, le=1, description="share of the teachers that were asked")

    def is_active(self) -> bool:
        return self.enabled and self.min_teacher_agreement > 0

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("teacher_agreement").fill_null(1) < self.min_teacher_agreement

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr("agreement of teachers ", pl.col("teacher_agreement").round(3))
