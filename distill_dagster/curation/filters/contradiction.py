"""Filter `contradiction`: reasoning that announces another answer."""

from __future__ import annotations

import polars as pl

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


class Contradiction(Filter):
    """The reasoning announces an answer ("The answer is …") that differs from the given one.

    Numbers are compared as numbers, labels by name, short texts by whether they share a word. Longer texts are not
    compared.
    """

    name = "contradiction"
    reason = "contradiction"
    defaults = FilterDefaults(
        kinds={kind: {} for kind in ("math", "qa", "classification", "nli")},
        reasoning_kinds=(*LABEL_KINDS, *FREE_TEXT_KINDS, "math", "qa"),
    )
    kept = FilterExample({"reasoning": "Three and four make seven. The answer is 7.", "answer": 7}, kind="math")
    dropped = FilterExample({"reasoning": "Three and four make seven. The answer is 7.", "answer": 12}, kind="math")

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("reasoning")]

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return score_expr("conclusion").is_not_null()

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr("reasoning: ", score_expr("conclusion").str.slice(0, 60), ", answer: ", pl.col("answer"))
