"""Filter `arithmetic`: wrong equations in the reasoning."""

from __future__ import annotations

import polars as pl
from pydantic import Field

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.curation.filters.base import (
    Filter,
    FilterDefaults,
    FilterExample,
    concat_expr,
    get_scorer,
    score_expr,
)
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import FREE_TEXT_KINDS, TaskView


class Arithmetic(Filter):
    """An equation between numbers in the reasoning is wrong ("12 + 5 = 18").

    A parser computes it in fractions, never `eval`. Rounded results are correct ("10 / 3 = 3.33"). Equations with
    variables, percentages or words between the numbers are not checked.
    """

    name = "arithmetic"
    reason = "arithmetic"
    defaults = FilterDefaults(
        kinds={"math": {}},
        reasoning_kinds=(*LABEL_KINDS, *FREE_TEXT_KINDS, "math", "qa"),
        bare_value="max_wrong",
    )
    kept = FilterExample({"reasoning": "3 * 4 = 12, and 12 + 5 = 17.", "answer": 17}, kind="math")
    dropped = FilterExample({"reasoning": "3 * 4 = 12, and 12 + 5 = 18.", "answer": 18}, kind="math")

    max_wrong: int = Field(default=0, ge=0, description="the most wrong equations of a row that is kept")

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("arithmetic")]

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return score_expr("wrong_sums") > self.max_wrong

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr(score_expr("wrong_sums"), " of ", score_expr("sums"), " wrong: ", score_expr("wrong_sum"))
