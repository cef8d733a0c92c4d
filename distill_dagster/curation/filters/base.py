"""What a filter is: a small class with parameters, one reason, and an expression that is true for rows to drop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from distill_dagster.curation.scores import SCORERS, Scorer
from distill_dagster.curation.task_view import TaskView


@dataclass(frozen=True)
class FilterExample:
    """A candidate for the documentation, and for a test: what is not said is as in a good row."""

    row: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "generation"
    labels: tuple[str, ...] = ()


class Filter(BaseModel):
    """One rule over scored candidates. A subclass is declared in task.yaml under its `name`, its fields are what may be
    set there, and its docstring stands in docs/filters.md.

    `drops` and `detail` are Polars expressions over the columns of `tables.SCORED` and `score(…)`; null drops nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ClassVar[str]
    reason: ClassVar[str]
    """What a dropped row gives as its drop reason."""
    short: ClassVar[str | None] = None
    """The field that a bare value sets: `language: [en]`."""
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """The kinds of task that `preset: suited` switches it on for, and the values that suit them."""
    reasoned: ClassVar[tuple[str, ...]] = ("classification", "nli", "math")
    """Of these kinds `preset: suited` takes it only where the task has reasoning: an answer alone is no text."""
    essential: ClassVar[bool] = False
    """Always on: nothing could be learned from what it drops, so nobody can switch it off."""
    by_default: ClassVar[bool] = False
    """On where the task says nothing. Only what needs no score, so that nobody's tables have to be made anew."""
    keys: ClassVar[Mapping[str, str]] = {}
    """Settings that stand directly in `filters:`, as `min_words` does, and the field that each sets."""
    kept: ClassVar[FilterExample]
    dropped: ClassVar[FilterExample]

    enabled: bool = Field(default=True, description="false switches it off; `name: false` does the same")

    @property
    def label(self) -> str:
        """Its name in tables for people."""
        return self.name

    @property
    def drop_reason(self) -> str:
        return self.reason

    def scorers(self) -> list[Scorer]:
        """The scorers whose scores it reads."""
        return []

    def drops(self, about: TaskView) -> pl.Expr:
        raise NotImplementedError(type(self).__name__)

    def detail(self, about: TaskView) -> pl.Expr:
        """The figures that made it drop a row."""
        return pl.lit(None, dtype=pl.String)

    def prepared(self, rows: pl.LazyFrame) -> pl.LazyFrame:
        """The rows with columns of its own that `drops` reads."""
        return rows

    def masks(self) -> bool:
        """Whether it changes the texts of rows instead of dropping them."""
        return False

    def active(self) -> bool:
        """Whether it can drop anything as it is set."""
        return self.enabled

    def shown(self) -> dict[str, Any]:
        """Its parameters, for people."""
        values = self.model_dump(mode="json", exclude={"enabled"})
        return {name: value for name, value in values.items() if value not in (None, [], ())}

    def hash_fields(self) -> dict[str, Any]:
        """Everything that decides which rows the filter drops, for the hash of the curation settings."""
        return {"reason": self.drop_reason} | self.model_dump(mode="json")

    @classmethod
    def for_kind(cls, kind: str) -> Self:
        """With the values that suit a kind of task."""
        return cls(**cls.suits.get(kind, {}))

    def suited_to(self, kind: str) -> Self:
        """With the values that suit a kind of task, but for those that were set."""
        values = self.suits.get(kind, {})
        return self.model_copy(update={name: v for name, v in values.items() if name not in self.model_fields_set})


def score_expr(name: str) -> pl.Expr:
    """One of `tables.SCORES`."""
    return pl.col("scores").struct.field(name)


def get_scorer(name: str) -> Scorer:
    return SCORERS[name]


def detail_expr(*parts: str | pl.Expr) -> pl.Expr:
    """A detail: texts and expressions one behind the other; null where one of them is."""
    return pl.concat_str([pl.lit(part) if isinstance(part, str) else part.cast(pl.String) for part in parts])


def outside_expr(value: pl.Expr, least: float | None, most: float | None) -> pl.Expr:
    """Whether a value is below or above a band."""
    found = pl.lit(False)
    if least is not None:
        found = found | (value < least)
    if most is not None:
        found = found | (value > most)
    return found
