"""How long prompt, reasoning and answer are, in words between white space, or an answer in tokens of its teacher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import polars as pl
from pydantic import Field, model_validator

from distill_dagster.curation.filters.base import (
    Filter,
    FilterExample,
    detail_expr,
    get_scorer,
    outside_expr,
    score_expr,
)
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import FREE_TEXT_KINDS, TaskView


class TooShort(Filter):
    """The prompt has fewer words than `min_words`."""

    name = "too_short"
    reason = "too_short"
    by_default = True
    keys: ClassVar[Mapping[str, str]] = {"min_words": "min_words"}
    kept = FilterExample({"text": "Where is it?"}, {"min_words": 2})
    dropped = FilterExample({"text": "Hello"}, {"min_words": 2})

    min_words: int = Field(default=1, ge=0, description="words of the user's turns")

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("words") < self.min_words

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr(pl.col("words"), " words")


class TooLong(Filter):
    """The prompt has more words than `max_words`."""

    name = "too_long"
    reason = "too_long"
    by_default = True
    keys: ClassVar[Mapping[str, str]] = {"max_words": "max_words"}
    kept = FilterExample({"text": "Where is it?"}, {"max_words": 3})
    dropped = FilterExample({"text": "Where on earth is it?"}, {"max_words": 3})

    max_words: int = Field(default=400, ge=1, description="words of the user's turns")

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("words") > self.max_words

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr(pl.col("words"), " words")


class _LengthFilter(Filter):
    short = "max"
    measured: ClassVar[str]
    unit: ClassVar[str] = " words"
    by: ClassVar[str] = "lengths"

    min: int | None = Field(default=None, ge=0, description="the least that is kept")
    max: int | None = Field(default=None, ge=1, description="the most that is kept")

    @model_validator(mode="after")
    def _band(self) -> _LengthFilter:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError("min is more than max")
        return self

    def scorers(self) -> list[Scorer]:
        return [get_scorer(self.by)]

    def active(self) -> bool:
        return self.enabled and (self.min is not None or self.max is not None)

    def drops(self, about: TaskView) -> pl.Expr:
        return outside_expr(score_expr(self.measured), self.min, self.max)

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr(score_expr(self.measured), self.unit)


class ReasoningLength(_LengthFilter):
    """The reasoning has fewer or more words than the band. A row without reasoning is kept."""

    name = "reasoning_words"
    reason = "reasoning_length"
    measured = "reasoning_words"
    reasoned = ("classification", "nli", "math", "qa")
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        key: {"min": 3, "max": 600} for key in ("math", "qa", "classification", "nli")
    }
    kept = FilterExample({"reasoning": "Three times four is twelve."}, {"min": 4})
    dropped = FilterExample({"reasoning": "It is so."}, {"min": 4})


class AnswerLength(_LengthFilter):
    """The answer has fewer or more words than the band."""

    name = "answer_words"
    reason = "answer_length"
    measured = "answer_words"
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "qa": {"min": 1, "max": 200},
        **{key: {"min": 2, "max": 1500} for key in FREE_TEXT_KINDS},
    }
    kept = FilterExample({"answer": "Two words."}, {"min": 2, "max": 3})
    dropped = FilterExample({"answer": "These are more than three."}, {"min": 2, "max": 3})


class CompletionTokens(_LengthFilter):
    """The completion has fewer or more tokens than the band, as its teacher counted them: reasoning and answer."""

    name = "completion_tokens"
    reason = "completion_tokens"
    measured = "completion_tokens"
    unit = " tokens"
    by = "sample"
    kept = FilterExample({"completion_tokens": 40}, {"max": 100})
    dropped = FilterExample({"completion_tokens": 140}, {"max": 100})
