"""Filter `gold`: answers that differ from the reference of their prompt."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import (
    Filter,
    FilterDefaults,
    FilterExample,
    concat_expr,
    get_scorer,
    score_expr,
)
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import TaskView


class ReferenceMismatch(Filter):
    """The answer differs from the `reference` of its prompt.

    Prompts without a reference and answers of people are kept. The task's kind compares the answers. For free
    texts the score is a similarity (ROUGE-L, chrF), so set `min`.
    """

    name = "gold"
    reason = "not_gold"
    defaults = FilterDefaults(bare_value="min")
    kept = FilterExample({"answer": "refund", "reference": "refund"}, kind="classification", labels=("refund", "login"))
    dropped = FilterExample(
        {"answer": "login", "reference": "refund"}, kind="classification", labels=("refund", "login")
    )

    min: float = Field(default=1.0, ge=0, le=1, description="the least score against the reference")

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("gold")]

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("teacher").is_not_null() & (score_expr("gold") < self.min)

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr("score ", score_expr("gold"), " against ", pl.col("reference").str.slice(0, 60))
