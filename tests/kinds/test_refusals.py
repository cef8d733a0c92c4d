"""Which texts decline, at their beginning and anywhere."""

from __future__ import annotations

import re

import polars as pl
import pytest

from distill_dagster.kinds.refusals import REFUSAL_ANYWHERE, is_refusal_text

DECLINES = (
    "I can't help with that.",
    "I'm sorry, but I cannot provide instructions for that.",
    "I won't write that.",
    "We will not discuss this.",
)


@pytest.mark.parametrize("text", DECLINES)
def test_a_refusal_is_found_at_the_beginning_and_anywhere(text: str) -> None:
    assert is_refusal_text(text)
    for longer in (text, f"That is a good question. {text}"):
        assert re.search(REFUSAL_ANYWHERE, longer)
        assert pl.Series([longer]).str.contains(REFUSAL_ANYWHERE)[0], "the same pattern in Polars"


def test_more_phrases_count_at_the_beginning_alone() -> None:
    text = "I could not give you the parcel, so I left it next door."
    assert is_refusal_text(text)
    assert not re.search(REFUSAL_ANYWHERE, text)
