"""JSON in text that a model wrote."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.core.json_text import FoundJson, decode_json, find_json, iterate_json, read_json


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


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
).filter(lambda value: isinstance(value, dict | list))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1,}', {"a": 1}),
        ('{"a": [1, 2, ], }', {"a": [1, 2]}),
        ('[{"a": 1},, {"a": 2},]', [{"a": 1}, {"a": 2}]),
        ('{"a": 1, // the first\n "b": /* no */ 2}', {"a": 1, "b": 2}),
        ('{"a": "http://x/y", }', {"a": "http://x/y"}),
        ("{'a': 'it''s \"b\"', 'c': True, 'd': None}", {"a": "it''s \"b\"", "c": True, "d": None}),
        ("{'a': 'it\\'s'}", {"a": "it's"}),
        ("{“a”: “b”}", {"a": "b"}),
        ('{a: 1, b_c: "x"}', {"a": 1, "b_c": "x"}),
        (r'{"a": "it\'s \(x\)"}', {"a": r"it's \(x\)"}),
        (r'{"a": "\u12"}', {"a": r"\u12"}),
        ('```json\n{"a": "a ```fence``` in it",}\n```', {"a": "a ```fence``` in it"}),
        ('```json5\r\n{"a": 1}\r\n```', {"a": 1}),
    ],
)
def test_json_as_models_write_it(text: str, value: Any) -> None:
    for before, after in (("", ""), ("Here it is:\n", "\nThat is all."), ("See [the note]: ", " (as in {name})")):
        assert find_json(before + text + after) == value


def test_json_that_was_encoded_twice() -> None:
    assert find_json(json.dumps('{"a": [1]}')) == {"a": [1]}
    assert find_json('"[note]" says {"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [{"b": 1}, {"b": 2',
        '[{"a": 1}, {"a',
        '[{"a": 1}, {"a": 2}',
        '{"a": {"b": 1}, "c": "no end',
        'So: {"a": {"b": 1},',
        '```json\n{"a": {"b": 1}',
        "{'a': {'b': 1}",
        "{",
    ],
)
def test_no_part_of_a_value_that_is_cut_is_read(text: str) -> None:
    assert read_json(text) == FoundJson((), is_cut=True)
    assert read_json('{"c": 3} ' + text) == FoundJson(({"c": 3},), is_cut=True)


@pytest.mark.parametrize("text", ['{"a": {"b": 1} "c": 2}', '[{"a": 1} {"a": 2}]', '{"a": [1 2]}', '{"a": 1e999}'])
def test_no_part_of_a_broken_value_is_read(text: str) -> None:
    assert read_json(text) == FoundJson((), is_broken=True)
    assert read_json(text + ' {"c": 3}') == FoundJson(({"c": 3},), is_broken=True)


def test_a_value_that_is_nested_too_deeply_is_not_read() -> None:
    assert read_json('{"a":' * 200 + "1" + "}" * 200) == FoundJson((), is_broken=True)


@given(JSON, st.data())
def test_a_value_is_read_whole_or_not_at_all(value: Any, data: st.DataObject) -> None:
    text = json.dumps(value)
    assert read_json(text) == FoundJson((value,))
    cut = text[: data.draw(st.integers(1, len(text) - 1))]
    assert read_json(cut) == FoundJson((), is_cut=True)


@given(JSON, st.sampled_from(["", " ", "\n  "]))
def test_commas_too_many_change_nothing(value: Any, space: str) -> None:
    loose = json.JSONEncoder(separators=(f",{space}", ":")).encode(value)
    loose = f"{loose[:-1]}{',' if len(loose) > 2 else ''}{space}{loose[-1]}"
    assert find_json(f"Here: {loose}") == value


@given(JSON)
def test_the_index_after_a_value_is_returned(value: Any) -> None:
    text = json.dumps(value)
    assert decode_json(f"1: {text} and more", 3) == (value, 3 + len(text))


@given(
    st.dictionaries(
        st.text("ab' \"é"), st.text("xy' \",ß") | st.booleans() | st.none() | st.integers(), min_size=1, max_size=3
    )
)
def test_python_literals_are_read(value: Any) -> None:
    assert find_json(f"It returns {value!r}.") == value


@pytest.mark.parametrize(
    "text", ["{'" + "a' " * 50_000, '{"' + "a\\" * 50_000, "[" * 50_000 + "'", '{"a": 1,' * 20_000, "[1 " * 50_000]
)
def test_long_broken_texts_end(text: str) -> None:
    assert read_json(text).values == ()
