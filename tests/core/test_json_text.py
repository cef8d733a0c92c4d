"""JSON in text that a model wrote."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.core.json_text import find_json, iterate_json


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('So: {"a": 1} and {"b": 2}', {"a": 1}),
        ('```json\n{"a": 1}\n```', {"a": 1}),
        ('Not [1], but:\n```json\n{"a": 1}\n```\nwith {"b": 2}', {"a": 1}),
        ('{"a": 1}\n```\nwhere ```\n{"b": 2}\n```', {"a": 1}),
        ("A block ```\nwithout JSON\n``` and [1]", [1]),
        ('[note] {"a": 1}', {"a": 1}),
        ('{"a": "two\nlines"}', {"a": "two\nlines"}),
        (r'{"a\ud83d": ["\ude00"]}', {"a?": ["?"]}),
        ("{" * 19 + '{"a": 1}', {"a": 1}),
        ("{" * 20 + '{"a": 1}', None),
        ("NaN", None),
        ("", None),
    ],
)
def test_find_json(text: str, value: Any) -> None:
    assert find_json(text) == value


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_a_constant_that_is_not_json_is_refused(constant: str) -> None:
    assert find_json(f'{{"a": {constant}}}') is None


def test_values_inside_a_value_are_not_yielded_again() -> None:
    assert list(iterate_json('[[1], {"a": [2]}] then {"b": [3]}')) == [[[1], {"a": [2]}], {"b": [3]}]


def test_deep_nesting_ends() -> None:
    assert list(iterate_json("[" * 100_000)) == []


@given(st.text() | st.text('[]{}"\\,:1. a\n`'))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for value in iterate_json(text):
        assert isinstance(value, dict | list)
