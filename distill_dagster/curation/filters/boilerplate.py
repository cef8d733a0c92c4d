"""Filter `boilerplate`: empty answers, placeholders and phrases of an assistant."""

from __future__ import annotations

import polars as pl

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, get_scorer, score_expr
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import FREE_TEXT_KINDS, TaskView


class Boilerplate(Filter):
    """The answer is empty, or has an assistant phrase ("As an AI language model"), a placeholder or a chat token.

    For kinds with labels, the filter looks at the reasoning instead.
    """

    name = "boilerplate"
    reason = "boilerplate"
    defaults = FilterDefaults(kinds={kind: {} for kind in (*FREE_TEXT_KINDS, "qa")})
    kept = FilterExample({"answer": "Dear Ms Lee, your parcel left on Monday."})
    dropped = FilterExample({"answer": "Dear [insert name], your parcel left on Monday."})

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("boilerplate")]

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return score_expr("boilerplate").is_not_null()

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return score_expr("boilerplate")
