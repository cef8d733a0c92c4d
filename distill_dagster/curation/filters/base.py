"""The base class of filters: one rule over a scored row, with one drop reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from distill_dagster.curation.scores import SCORERS, Scorer
from distill_dagster.curation.task_view import TaskView

FilterValues = Mapping[str, Mapping[str, Any]]
"""By kind of task, values of a filter's fields."""


@dataclass(frozen=True)
class FilterExample:
    """A candidate for the documentation and for a test. Columns that `row` omits are as in a good row."""

    row: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "generation"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class FilterDefaults:
    """When a filter is on where task.yaml does not mention it, and with which values.

    Attributes:
        kinds: the kinds of task that `preset: suited` turns the filter on for, with the values that suit each. Of a
            filter with a `threshold` they are the defaults, whatever the preset.
        reasoning_kinds: of these kinds, `preset: suited` turns the filter on only where the task has reasoning. Their
            answers alone are too short to judge.
        always_on: no setting turns the filter off, since no student can learn from the rows that it drops.
        on_by_default: on without any setting. Only filters without scorers may be: a score makes tables stale.
        threshold: the setting in `filters:` that sets the field of this name. The filter has no block of its own.
        bare_value: the field that a bare value sets, such as `language: [en]`.
    """

    kinds: FilterValues = field(default_factory=dict)
    reasoning_kinds: tuple[str, ...] = ("classification", "nli", "math")
    always_on: bool = False
    on_by_default: bool = False
    threshold: str | None = None
    bare_value: str | None = None


class Filter(BaseModel):
    """One rule over scored candidates.

    A subclass is declared in task.yaml under its `name`. Its fields are the settings, and its docstring is printed in
    docs/filters.md. `kept` and `dropped` are examples for the docs and the tests; built-in filters have both.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    reason: ClassVar[str]
    """The drop reason of the rows that it drops."""
    defaults: ClassVar[FilterDefaults] = FilterDefaults()
    kept: ClassVar[FilterExample]
    dropped: ClassVar[FilterExample]

    enabled: bool = Field(default=True, description="false turns the filter off; `name: false` does the same")

    def is_active(self) -> bool:
        """Whether the filter can drop or change anything with its settings."""
        return self.enabled

    def list_scorers(self) -> list[Scorer]:
        """The scorers whose scores it reads."""
        return []

    def drop_expr(self, task: TaskView) -> pl.Expr:
        """True for the rows to drop; null counts as false.

        The expression reads columns of `tables.schemas.SCORED`, and scores by `score_expr`.
        """
        raise NotImplementedError(type(self).__name__)

    def detail_expr(self, task: TaskView) -> pl.Expr:
        """The figures behind a dropped row, as text."""
        return pl.lit(None, dtype=pl.String)


def score_expr(name: str) -> pl.Expr:
    """One of `tables.schemas.SCORES`."""
    return pl.col("scores").struct.field(name)


def get_scorer(name: str) -> Scorer:
    return SCORERS[name]


def concat_expr(*parts: str | pl.Expr) -> pl.Expr:
    """Texts and expressions joined to one text; null where one of them is null."""
    return pl.concat_str([pl.lit(part) if isinstance(part, str) else part.cast(pl.String) for part in parts])


def outside_expr(value: pl.Expr, least: float | None, most: float | None) -> pl.Expr:
    """Whether a value is below `least` or above `most`."""
    outside = pl.lit(False)
    if least is not None:
        outside = outside | (value < least)
    if most is not None:
        outside = outside | (value > most)
    return outside


def error_expr() -> pl.Expr:
    """What went wrong with the completion of a candidate without an answer."""
    return pl.coalesce("error", "status")
