"""Filter `refused`: the teacher declined to answer."""

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
from distill_dagster.kinds import WANTED_REFUSAL


class Refused(Filter):
    """The teacher declined. Rows of a slice with `refusal: wanted` are kept: there a refusal is the right answer.

    With `phrases`, rows with a refusal phrase in the answer or its reasoning are dropped too.
    """

    name = "refused"
    reason = "refused"
    defaults = FilterDefaults(
        kinds={kind: {"phrases": True} for kind in (*FREE_TEXT_KINDS, "qa", "math")},
        on_by_default=True,
        bare_value="phrases",
    )
    kept = FilterExample({"answer": "Here is the letter.", "reasoning": None}, {"phrases": True})
    dropped = FilterExample({"answer": "Well. I cannot help with that."}, {"phrases": True})

    phrases: bool = Field(default=False, description="look for refusal phrases in answers and reasoning")

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("refusal")] if self.phrases else []

    def drop_expr(self, task: TaskView) -> pl.Expr:
        unwanted = pl.col("reference").ne_missing(WANTED_REFUSAL)
        declined = pl.col("status") == "refused"
        return unwanted & (declined | score_expr("refusal").is_not_null()) if self.phrases else unwanted & declined

    def detail_expr(self, task: TaskView) -> pl.Expr:
        if not self.phrases:
            return error_expr()
        return pl.when(pl.col("status") == "refused").then(error_expr()).otherwise(score_expr("refusal"))
