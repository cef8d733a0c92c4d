"""Filter `secrets`: keys, tokens and passwords."""

from __future__ import annotations

import polars as pl

from distill_dagster.curation.filters.base import FilterExample, concat_expr, score_expr
from distill_dagster.curation.filters.private_data_filter import PrivateDataFilter
from distill_dagster.curation.task_view import TaskView


class Secrets(PrivateDataFilter):
    """The prompt, the reasoning or the answer contains a key, token or password (detect-secrets and more patterns)."""

    name = "secrets"
    reason = "secret"
    kept = FilterExample({"answer": "Set the variable to your key, and keep the key to yourself."})
    dropped = FilterExample({"answer": "Sign in, the password is pa55-of-the-p4rcel, and look."})

    def found_expr(self) -> pl.Expr:
        return score_expr("secrets") > 0

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr(score_expr("secrets"), " found")
