"""The base of filters by the score of a local classifier. Nothing is downloaded."""

from __future__ import annotations

from typing import ClassVar, Literal

import polars as pl
from pydantic import Field, field_validator

from distill_dagster.curation.filters.base import Filter, concat_expr, score_expr
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.scores.classifiers import (
    build_classifier_scorer,
    describe_missing_classifier,
    find_classifiers,
)
from distill_dagster.curation.task_view import TaskView


class ClassifierFilter(Filter):
    """Drops rows above a limit for the score of an installed classifier."""

    field: ClassVar[str]

    use: str = Field(
        min_length=1,
        max_length=100,
        pattern=r"^[A-Za-z0-9_.-]+$",
        description="name of an installed classifier: an entry point in the group distill_dagster.classifiers, or a "
        "name in DISTILL_CLASSIFIERS",
    )

    @field_validator("use")
    @classmethod
    def _check_installed(cls, value: str) -> str:
        if value not in find_classifiers():
            raise ValueError(describe_missing_classifier(value))
        return value

    max: float = Field(default=0.5, ge=0, le=1, description="the largest score that is kept")
    of: Literal["prompt", "written"] = Field(
        default="written", description="`prompt`, or `written`: reasoning and answer"
    )

    def list_scorers(self) -> list[Scorer]:
        return [build_classifier_scorer(self.field, self.use, {"prompt": "text"}.get(self.of, self.of))]

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return score_expr(self.field) > self.max

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return concat_expr(f"{self.field} ", score_expr(self.field))
