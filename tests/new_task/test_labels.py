"""Labels as people and spreadsheets write them."""

from __future__ import annotations

from typing import Any

import pytest

from distill_dagster.new_task.labels import NotALabelError, clean_labels, read_label_cell


def clean(*written: str | None, **mapping: str) -> list[str | None]:
    return clean_labels(written, mapping).labels


def test_spaces_and_case_do_not_make_a_label_and_the_most_frequent_spelling_names_it() -> None:
    found = clean_labels(["Refund ", "refund", "refund", " REFUND", "log  in", "log in", "ﬁx", "fix", "fix"], {})
    assert found.labels == ["refund"] * 4 + ["log in"] * 2 + ["fix"] * 3
    assert found.renamed == {
        " REFUND": ("refund", 1),
        "Refund ": ("refund", 1),
        "log  in": ("log in", 1),
        "ﬁx": ("fix", 1),
    }


@pytest.mark.parametrize("empty", [None, "nan", "NaN", "NULL", "#N/A", "<NA>"])
def test_what_spreadsheets_write_for_no_value_is_no_label(empty: str | None) -> None:
    assert clean("a", empty) == ["a", None]


def test_words_that_may_be_labels_stay() -> None:
    assert clean("none", "n/a", "-", "other") == ["none", "n/a", "-", "other"]


def test_class_numbers_that_pandas_wrote_lose_their_point() -> None:
    assert clean("1.0", "2.0", None) == ["1", "2", None]
    assert clean("1.0", "2.5") == ["1.0", "2.5"], "these are no class numbers"


def test_a_map_renames_joins_and_removes() -> None:
    mapping = {"Billing ": "money", "refunds": "money", "spam": "", "0": "zero"}
    found = clean_labels(["Billing ", "refunds", "Spam", "spam", "0", "MONEY"], mapping)
    assert found.labels == ["money", "money", "Spam", None, "zero", "money"]
    assert found.unused == ()
    assert clean_labels(["a"], {"b": "c"}).unused == ("b",)


def test_the_name_of_a_map_wins_over_the_spelling_of_the_file() -> None:
    assert clean("login", "login", "log-in", **{"log-in": "Login"}) == ["Login"] * 3


@pytest.mark.parametrize(
    ("value", "label"),
    [("a", "a"), ("", None), (" ", None), (None, None), ([], None), (["a"], "a"), (3, "3"), (3.0, "3"), (True, "true"),
     (float("nan"), None), (2.5, "2.5")],
)  # fmt: skip
def test_cells_of_every_type(value: Any, label: str | None) -> None:
    assert read_label_cell(value) == label


@pytest.mark.parametrize("value", [["a", "b"], {"choices": ["a"]}, "long words " * 20])
def test_cells_that_are_no_label(value: Any) -> None:
    with pytest.raises(NotALabelError):
        read_label_cell(value)
