"""Filter `other_label`: prompts that were meant for another label."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, concat_expr
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import json_text_expr


class TargetLabelMismatch(Filter):
    """The prompt was written or imagined for another label (`target_label`) than the answer."""

    name = "other_label"
    reason = "other_label"
    defaults = FilterDefaults(threshold="target_label")
    kept = FilterExample(
        {"answer": "refund", "target_label": "refund"},
        {"target_label": "drop_disagreement"},
        "classification",
        ("refund", "login"),
    )
    dropped = FilterExample(
        {"answer": "login", "target_label": "refund"},
        {"target_label": "drop_disagreement"},
        "classification",
        ("refund", "login"),
    )

    target_label: Literal["keep_answer", "drop_disagreement"] = Field(
        default="keep_answer", description="whether such rows are dropped"
    )

    def is_active(self) -> bool:
        return self.enabled and self.target_label == "drop_disagreement"

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.col("answer") != json_text_expr(pl.col("target_label"))

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr("meant as ", pl.col("target_label"), ", answered ", pl.col("answer"))
