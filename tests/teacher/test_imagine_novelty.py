"""Repeats within a slice: duplicates and near-duplicates."""

from __future__ import annotations

from distill_dagster.teacher.imagine.novelty import SeenPrompts

LONG = "the export of all our invoices to a spreadsheet stops half way and the file has no totals at the end"


def test_equal_words_are_a_duplicate() -> None:
    seen = SeenPrompts(0.7, ["Refund  me, please!", "¿?"])
    assert seen.find_repeat("refund me — PLEASE") == "duplicate"
    assert seen.find_repeat("¿?") == "duplicate"
    assert seen.find_repeat("refund us please") is None
    assert seen.find_repeat("") is None


def test_longer_texts_are_compared_by_their_3_grams() -> None:
    seen = SeenPrompts(0.7, [LONG])
    assert seen.find_repeat(LONG + " now") == "near_duplicate"
    assert seen.find_repeat(LONG.replace("totals", "sums")) == "near_duplicate"  # 16 of 22 3-grams: 0.727
    assert SeenPrompts(0.73, [LONG]).find_repeat(LONG.replace("totals", "sums")) is None
    words = LONG.split()
    assert seen.find_repeat(" ".join(reversed(words))) is None
    assert seen.find_repeat(" ".join(words[:13])) is None, "11 of 19 3-grams: 0.58"


def test_short_texts_share_words_and_are_not_merged() -> None:
    seen = SeenPrompts(0.1, ["how do I export my data", "what is 3 plus 4"])
    assert seen.find_repeat("how do I export my files") is None
    assert seen.find_repeat("what is 3 plus 5") is None


def test_an_added_text_is_seen() -> None:
    seen = SeenPrompts(0.7)
    assert seen.find_repeat(LONG) is None
    seen.add(LONG)
    assert seen.find_repeat(LONG.upper()) == "duplicate"
