"""Names from any text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.config import SLICE_KEY_PATTERN
from distill_dagster.core.slugs import slugify


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Phone note", "phone-note"),
        ("  E-Mail ", "e-mail"),
        ("Straße & Übersee", "strasse-ubersee"),
        ("Čeština", "cestina"),
        ("Łódź", "lodz"),
        ("C++", "c"),
        ("日本", ""),
        ("--", ""),
        ("a" * 90, "a" * 60),
        ("2024/Q1", "2024-q1"),
    ],
)
def test_names_of_slices(text: str, key: str) -> None:
    assert slugify(text) == key


@given(st.text())
def test_what_is_made_is_a_slice_key(text: str) -> None:
    assert not slugify(text) or SLICE_KEY_PATTERN.fullmatch(slugify(text))
