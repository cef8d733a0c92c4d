"""Filter `too_long`: long prompts."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, concat_expr
from distill_dagster.curation.task_view import TaskView

DEFAULT_MAX_WORDS = 400
SHORT_PROMPT_KINDS = ("classification", "nli", "math", "tool_call")
"""Kinds whose prompts are limited by default. The prompts of other kinds are documents of any length."""


class TooLong(Filter):
    """The prompt has more words than `max_words`.

    The kinds summarization, extraction, qa, conversation and generation have no limit by default.
    """

    name = "too_long"
    reason = "too_long"
    defaults = FilterDefaults(
        kinds={kind: {"max_words": DEFAULT_MAX_WORDS} for kind in SHORT_PROMPT_KINDS},
        on_by_default=True,
        threshold="max_words",
    )
    kept = FilterExample({"text": "Where is it?"}, {"max_words": 3})
    dropped = FilterExample({"text": "Where on earth is it?"}, {"max_words": 3})

    max_words: int | None = Field(default=None, ge=1, description="words of the user's turns; null: no limit")

    def is_active(self) -> bool:
        return self.enabled and self.max_words is not None

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.lit(False) if self.max_words is None else pl.col("words") > self.max_words

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr(pl.col("words"), " words")
