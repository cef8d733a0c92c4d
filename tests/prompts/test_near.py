"""What counts as said already within a slice."""

from __future__ import annotations

from distill_dagster.teacher.imagine.novelty import SeenPrompts

LONG = "the export of all our invoices to a spreadsheet stops half way and the file has no totals at the end"


def test_equal_words_are_a_duplicate() -> None:
    known = SeenPrompts(0.7, ["Refund  me, please!", "¿?"])
    assert known.find_repeat("refund me — PLEASE") == "duplicate"
    assert known.find_repeat("¿?") == "duplicate"
    assert known.find_repeat("refund us please") is None
    assert known.find_repeat("") is None


def test_longer_texts_are_compared_by_their_3_grams() -> None:
    known = SeenPrompts(0.7, [LONG])
    assert known.find_repeat(LONG + " now") == "near_duplicate"
    assert known.find_repeat(LONG.replace("totals", "sums")) == "near_duplicate"  # 16 of 22 3-grams: 0.727
    assert SeenPrompts(0.73, [LONG]).find_repeat(LONG.replace("totals", "sums")) is None
    words = LONG.split()
    assert known.find_repeat(" ".join(reversed(words))) is None
    assert known.find_repeat(" ".join(words[:13])) is None, "11 of 19 3-grams: 0.58"


def test_short_texts_share_words_and_are_not_merged() -> None:
    known = SeenPrompts(0.1, ["how do I export my data", "what is 3 plus 4"])
    assert known.find_repeat("how do I export my files") is None
    assert known.find_repeat("what is 3 plus 5") is None


def test_what_is_added_is_known() -> None:
    known = SeenPrompts(0.7)
    assert known.find_repeat(LONG) is None
    known.add(LONG)
    assert known.find_repeat(LONG.upper()) == "duplicate"
