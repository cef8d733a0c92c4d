"""Filter `answer_first`: reasoning that begins with the answer."""

from __future__ import annotations

import polars as pl

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, get_scorer, score_expr
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import FREE_TEXT_KINDS, TaskView


class AnswerFirst(Filter):
    """The reasoning begins with the answer ("The answer is 7, because …", or the label itself).

    The rest explains an answer that is already there. A student does not learn from it how to find one.
    """

    name = "answer_first"
    reason = "answer_first"
    defaults = FilterDefaults(
        kinds={kind: {} for kind in ("math", "classification", "nli")},
        reasoning_kinds=(*LABEL_KINDS, *FREE_TEXT_KINDS, "math", "qa"),
    )
    kept = FilterExample({"reasoning": "Three and four make seven. So the answer is 7.", "answer": 7}, kind="math")
    dropped = FilterExample({"reasoning": "The answer is 7. For three and four make seven.", "answer": 7}, kind="math")

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("reasoning")]

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return score_expr("answer_first")

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("reasoning").str.slice(0, 60)
