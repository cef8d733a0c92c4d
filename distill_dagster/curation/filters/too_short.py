"""Filter `too_short`: short prompts."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, concat_expr
from distill_dagster.curation.task_view import TaskView


class TooShort(Filter):
    """The prompt has fewer words than `min_words`."""

    name = "too_short"
    reason = "too_short"
    defaults = FilterDefaults(on_by_default=True, threshold="min_words")
    kept = FilterExample({"text": "Where is it?"}, {"min_words": 2})
    dropped = FilterExample({"text": "Hello"}, {"min_words": 2})

    min_words: int = Field(default=1, ge=0, description="words of the user's turns")

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("words") < self.min_words

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr(pl.col("words"), " words")
