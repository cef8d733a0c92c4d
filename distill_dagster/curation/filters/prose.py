"""Filter `prose`: texts that do not look like prose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from distill_dagster.curation.filters.base import FilterDefaults, FilterExample
from distill_dagster.curation.filters.measure_filter import MeasureFilter


class Prose(MeasureFilter):
    """The text does not look like prose, by Gopher's rules of quality (Rae et al. 2021).

    The rules are for long texts. `min_stop_words` is how many of eight frequent English words must occur. null turns a
    rule off.
    """

    name = "prose"
    reason = "prose"
    defaults = FilterDefaults(
        kinds={"summarization": {"min_stop_words": None}, "conversation": {"min_stop_words": None}}
    )
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
    mean_word_length: float | None = Field(default=10, gt=0, description="the most characters per word, on average")
    min_mean_word_length: float | None = Field(
        default=3, ge=0, description="the fewest characters per word, on average"
    )
    hashes: float | None = Field(default=0.1, ge=0, description="the most `#` per word")
    ellipses: float | None = Field(default=0.1, ge=0, description="the most `...` per word")
    bullet_lines: float | None = Field(
        default=0.9, ge=0, le=1, description="largest share of lines that begin with - or •"
    )
    ellipsis_lines: float | None = Field(
        default=0.3, ge=0, le=1, description="largest share of lines that end with an ellipsis"
    )
    min_alphabetic_words: float | None = Field(
        default=0.8, ge=0, le=1, description="least share of words with a letter"
    )
    min_stop_words: int | None = Field(
        default=2, ge=0, le=8, description="out of: the, be, to, of, and, that, have, with"
    )
