"""The base of filters of private data, which drop rows or mask values."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterDefaults, get_scorer
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import TaskView


class PrivateDataFilter(Filter):
    """With `action: mask` it drops nothing; `dataset.mask` then replaces the values in kept rows."""

    defaults = FilterDefaults(bare_value="action")

    action: Literal["drop", "mask"] = Field(
        default="drop", description="drop the row, or replace each value by its kind, such as <EMAIL>"
    )

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("private")]

    def found_expr(self) -> pl.Expr:
        """Whether a row contains such data."""
        raise NotImplementedError

    def drop_expr(self, task: TaskView) -> pl.Expr:
        return pl.lit(False) if self.action == "mask" else self.found_expr()
