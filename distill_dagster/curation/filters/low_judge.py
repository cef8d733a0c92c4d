"""Filter `low_judge`: the judge gave a low score."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, concat_expr
from distill_dagster.curation.task_view import TaskView


class LowJudgeScore(Filter):
    """The judge's mean score is below `min_judge`, or there is none.

    A score of 1 of 5 counts as 0, and 5 of 5 as 1.
    """

    name = "low_judge"
    reason = "low_judge"
    defaults = FilterDefaults(threshold="min_judge")
    kept = FilterExample({"judge_score": 0.75}, {"min_judge": 0.6})
    dropped = FilterExample({"judge_score": 0.5}, {"min_judge": 0.6})

    min_judge: float = Field(default=0.0, ge=0, le=1, description="the judge's mean score")

    def is_active(self) -> bool:
        return self.enabled and self.min_judge > 0

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("teacher").is_not_null() & (pl.col("judge_score").fill_null(0) < self.min_judge)

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr("judge score ", pl.col("judge_score").round(3)).fill_null("not judged")
