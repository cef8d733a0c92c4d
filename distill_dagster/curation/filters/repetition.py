"""Filter `repetition`: texts that repeat themselves."""

from __future__ import annotations

from pydantic import Field

from distill_dagster.curation.filters.base import FilterDefaults, FilterExample
from distill_dagster.curation.filters.measure_filter import MeasureFilter
from distill_dagster.curation.task_view import FREE_TEXT_KINDS


class Repetition(MeasureFilter):
    """The text repeats lines, paragraphs or n-grams of words, by the rules of Gopher (Rae et al. 2021).

    Each limit is the largest share, of lines or of characters, that is kept; null turns a rule off. `top_2_gram` to
    `top_4_gram` count the most frequent n-gram, if it occurs at least twice. `duplicate_5_grams` to
    `duplicate_10_grams` count all n-grams that occurred before. The limits are from the paper, which is about web
    pages. Texts under `min_words` are kept.
    """

    name = "repetition"
    reason = "repetition"
    defaults = FilterDefaults(
        kinds={
            **{kind: {} for kind in FREE_TEXT_KINDS},
            # Steps of a calculation look alike: "12 - 3 = 9", "9 - 3 = 6".
            **{kind: {"top_2_gram": 0.4, "top_3_gram": 0.3} for kind in ("math", "qa", "classification", "nli")},
        }
    )
    above = (
        *("duplicate_lines", "duplicate_line_chars", "duplicate_paragraphs", "duplicate_paragraph_chars"),
        *(f"top_{n}_gram" for n in (2, 3, 4)),
        *(f"duplicate_{n}_grams" for n in (5, 6, 7, 8, 9, 10)),
    )
    kept = FilterExample({"answer": "Your parcel left on Monday and should arrive within the week."}, {"min_words": 5})
    dropped = FilterExample({"answer": "I am sure. " * 12})

    min_words: int = Field(default=20, ge=0, description="texts with fewer words are kept: they are too short to judge")
    duplicate_lines: float | None = Field(
        default=0.3, ge=0, le=1, description="share of lines that repeat an earlier line"
    )
    duplicate_line_chars: float | None = Field(default=0.2, ge=0, le=1, description="share of characters in such lines")
    duplicate_paragraphs: float | None = Field(
        default=0.3, ge=0, le=1, description="share of paragraphs that repeat an earlier one"
    )
    duplicate_paragraph_chars: float | None = Field(
        default=0.2, ge=0, le=1, description="share of characters in such paragraphs"
    )
    top_2_gram: float | None = Field(
        default=0.2, ge=0, le=1, description="share of characters in the most frequent 2-gram"
    )
    top_3_gram: float | None = Field(
        default=0.18, ge=0, le=1, description="share of characters in the most frequent 3-gram"
    )
    top_4_gram: float | None = Field(
        default=0.16, ge=0, le=1, description="share of characters in the most frequent 4-gram"
    )
    duplicate_5_grams: float | None = Field(
        default=0.15, ge=0, le=1, description="share of characters in repeated 5-grams"
    )
    duplicate_6_grams: float | None = Field(
        default=0.14, ge=0, le=1, description="share of characters in repeated 6-grams"
    )
    duplicate_7_grams: float | None = Field(
        default=0.13, ge=0, le=1, description="share of characters in repeated 7-grams"
    )
    duplicate_8_grams: float | None = Field(
        default=0.12, ge=0, le=1, description="share of characters in repeated 8-grams"
    )
    duplicate_9_grams: float | None = Field(
        default=0.11, ge=0, le=1, description="share of characters in repeated 9-grams"
    )
    duplicate_10_grams: float | None = Field(
        default=0.1, ge=0, le=1, description="share of characters in repeated 10-grams"
    )
