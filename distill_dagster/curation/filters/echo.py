"""Filter `echo`: answers that repeat the prompt."""

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


class Echo(Filter):
    """The answer repeats the prompt. Its score is the share of its word 3-grams that the prompt contains.

    An answer of fewer than eight words counts only if it equals the prompt, word for word.
    """

    name = "echo"
    reason = "echo"
    defaults = FilterDefaults(
        kinds={
            "conversation": {"max": 0.6},
            "generation": {"max": 0.95},
            "summarization": {"max": 0.98},
            "qa": {},
        },
        bare_value="max",
    )
    kept = FilterExample(
        {"text": "Where is my parcel, it was sent on Monday?", "answer": "It arrives on Friday at noon."}
    )
    dropped = FilterExample({"text": "Where is my parcel?", "answer": "where is my parcel"})

    max: float = Field(default=0.8, ge=0, le=1, description="the largest share that is kept")

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("echo")]

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return score_expr("echo") > self.max

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr("echo ", score_expr("echo"))
