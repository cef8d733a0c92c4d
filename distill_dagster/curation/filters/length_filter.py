"""The base of filters by length: a least and a most number of words or tokens."""

from __future__ import annotations

from typing import ClassVar

import polars as pl
from pydantic import Field, model_validator

from distill_dagster.curation.filters.base import Filter, concat_expr, get_scorer, outside_expr, score_expr
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import TaskView


class LengthFilter(Filter):
    """Drops rows whose score `measure` is below `min` or above `max`."""

    measure: ClassVar[str]
    unit: ClassVar[str] = " words"
    scorer: ClassVar[str] = "lengths"

    min: int | None = Field(default=None, ge=0, description="the least that is kept")
    max: int | None = Field(default=None, ge=1, description="the most that is kept")

    @model_validator(mode="after")
    def _check_order(self) -> LengthFilter:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is more than max")
        return self

    def is_active(self) -> bool:
        return self.enabled and (self.min is not None or self.max is not None)

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer(self.scorer)]

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return outside_expr(score_expr(self.measure), self.min, self.max)

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr(score_expr(self.measure), self.unit)
