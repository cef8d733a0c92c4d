"""The base of filters with a limit for each of several measures of a text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, concat_expr, get_scorer, score_expr
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import TaskView


class MeasureFilter(Filter):
    """Drops rows that pass a limit; the first limit that a row passes is its detail.

    A subclass has a field for each limit; null turns one off. `above` names the measures, and fields, with an upper
    limit. `below` maps fields with a lower limit to their measures.
    """

    above: ClassVar[tuple[str, ...]] = ()
    below: ClassVar[Mapping[str, str]] = {}

    min_words: int = Field(default=0, ge=0, description="texts with fewer words are kept: they are too short to judge")

    def is_active(self) -> bool:
        return self.enabled and bool(self._list_limits())

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("prose")]

    def _list_limits(self) -> list[tuple[pl.Expr, str, str]]:
        """Of each limit whether a row passes it, the measure, and sign and value for the detail."""
        above = [(name, getattr(self, name)) for name in self.above]
        below = [(name, getattr(self, field)) for field, name in self.below.items()]
        upper = [(score_expr(name) > limit, name, f" > {limit}") for name, limit in above if limit is not None]
        lower = [(score_expr(name) < limit, name, f" < {limit}") for name, limit in below if limit is not None]
        return upper + lower

    def drop_expr(self, task: TaskView) -> pl.Expr:
        passed = pl.any_horizontal(is_passed.fill_null(False) for is_passed, _, _ in self._list_limits())
        return passed & (score_expr("prose_words") >= self.min_words)

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return pl.coalesce(
            pl.when(is_passed).then(concat_expr(f"{name} ", score_expr(name), limit))
            for is_passed, name, limit in self._list_limits()
        )
