"""Filter `truncated`: answers that were cut."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import (
    Filter,
    FilterDefaults,
    FilterExample,
    error_expr,
    get_scorer,
    score_expr,
)
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import FREE_TEXT_KINDS, TaskView


class Truncated(Filter):
    """The answer was cut at `max_tokens`.

    With `finish`, a readable answer in a cut completion is dropped too: its reasoning may have continued after it.
    """

    name = "truncated"
    reason = "truncated"
    defaults = FilterDefaults(
        kinds={kind: {"finish": True} for kind in FREE_TEXT_KINDS}, on_by_default=True, bare_value="finish"
    )
    kept = FilterExample({"answer": "All of it."})
    dropped = FilterExample({"answer": None, "status": "truncated", "error": "the answer was cut at max_tokens"})

    finish: bool = Field(default=False, description="drop readable answers too if the finish reason is `length`")

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("sample")] if self.finish else []

    def drop_expr(self, task: TaskView) -> pl.Expr:
        cut = pl.col("status") == "truncated"
        return cut | (score_expr("finish_reason") == "length").fill_null(False) if self.finish else cut

    def detail_expr(self, task: TaskView) -> pl.Expr:
        cut = pl.when(pl.col("status") == "truncated").then(error_expr())
        return cut.otherwise(pl.lit("finish reason length")) if self.finish else error_expr()
