"""Parse the texts that a model listed in any form."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.core.json_text import find_json
from distill_dagster.teacher.imagine.parsing import parse_texts
from distill_dagster.teacher.imagine.plan import Imaginer
from distill_dagster.teacher.providers.responses import build_filtered_response
from tests.support.task import write_small_task

TWO = ["first text", "second text"]
FORMS = {
    "object": '{"prompts": ["first text", "second text"]}',
    "list": '["first text", "second text"]',
    "objects": '[{"text": "first text"}, {"text": "second text", "n": 2}]',
    "keys": '{"1": "first text", "2": "second text"}',
    "fenced": 'Here they are:\n```json\n["first text",\n "second text"]\n```\nAnything else?',
    "between words": 'Sure! {"prompts": ["first text", "second text"]} Done.',
    "numbered": "1. first text\n2. second text",
    "brackets": "(1) first text\n(2) second text",
    "with a preface": "Here are two:\n\n1) first text\n\n2) **second text**\n\nI hope that helps.",
    "bullets": "- \"first text\"\n* 'second text'",
    "lines": "Two texts:\nfirst text\n\nsecond text",
    "cut JSON": '{"prompts": ["first text", "second text", "third te',
    "cut objects": '{"prompts": [{"text": "first text"}, {"text": "second text"}, {"te',
    "tags": "Sure!\n<prompts>\n1. first text\n2. second text\n</prompts>",
    "tagged lines": "<prompts>\nfirst text\nsecond text\n</prompts>",
    "JSON lines": '{"text": "first text"}\n{"text": "second text"}',
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_parsed(form: str) -> None:
    assert parse_texts(FORMS[form], 5, cut=form.startswith("cut")) == TWO


def test_json_inside_a_text_is_part_of_it() -> None:
    texts = ['the body {"a": 1} is refused', 'and ["b"] too']
    assert parse_texts(f"1. {texts[0]}\n2. {texts[1]}", 2) == texts
    assert parse_texts(texts[0], 1) == [texts[0]]


def test_json_cut_before_its_first_text_has_no_texts() -> None:
    assert parse_texts('{"prompts": "fi', 2, cut=True) == []
    assert parse_texts('{"prompts": ["fi', 2, cut=True) == []
    assert parse_texts(r'["a \q", "b", "c', 3, cut=True) == ["b"]


def test_no_more_texts_than_requested_and_no_incomplete_one() -> None:
    assert parse_texts("1. a b\n2. c d\n3. e f", 2) == ["a b", "c d"]
    assert parse_texts("1. a b\n2. c d\n3. e", 5, cut=True) == ["a b", "c d"]


def test_one_text_may_have_many_lines() -> None:
    assert parse_texts("Dear all,\n\nit is broken.\n", 1) == ["Dear all,\n\nit is broken."]
    assert parse_texts("1. Dear all,\nit is broken.\n2. x", 2) == ["Dear all,\nit is broken.", "x"]


def test_signs_without_a_word_are_not_texts() -> None:
    assert parse_texts('["", "…", "?", 7, null, ["x"]]', 9) == []
    assert parse_texts("---\n1. \n2. ***", 9) == []
    assert parse_texts("", 3) == []


def test_a_refusal_is_not_a_text() -> None:
    assert parse_texts("I'm sorry, but I can't help with that.", 3) == []


def test_unpaired_surrogates_are_replaced() -> None:
    assert parse_texts(r'["a\ud83d", "b"]', 2) == ["a?", "b"]
    assert parse_texts(r'["a\ud83d", "b', 2, cut=True) == ["a?"]
    assert find_json(r'{"a\ud83d": {"b": ["\ude00"]}}') == {"a?": {"b": ["?"]}}


def test_quotation_marks_inside_a_text_stay() -> None:
    assert parse_texts('1. "Save" does nothing, "Print" works', 1) == ['"Save" does nothing, "Print" works']


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=1, max_size=5))
def test_json_is_read_unchanged(texts: list[str]) -> None:
    assert parse_texts(json.dumps({"prompts": texts}), 5) == texts
    assert find_json(f"so: {json.dumps(texts)}") == texts


@given(st.text() | st.text('[]{}"\\,:1. a\n`'), st.integers(1, 5), st.booleans())
def test_any_answer_is_read_without_an_error(text: str, count: int, cut: bool) -> None:
    found = parse_texts(text, count, cut)
    assert len(found) <= count
    assert all(one == one.strip() and one for one in found)


THINKING = "The user wants two.\n1. a draft\n2. another draft\nNo, shorter."


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("<think>\n", "\n</think>\n"),
        ("", "</think>\n"),
        ("[THINK]", "[/THINK]"),
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
    ],
)
def test_thoughts_are_no_texts(form: str, opening: str, closing: str) -> None:
    text = f"{opening}{THINKING}{closing}{FORMS[form]}"
    assert parse_texts(text, 5, cut=form.startswith("cut")) == TWO


@pytest.mark.parametrize("opening", ["<think>", "[THINK]", "<|channel|>analysis<|message|>"])
@pytest.mark.parametrize("cut", [False, True])
def test_thinking_that_never_ends_has_no_texts(opening: str, cut: bool) -> None:
    assert parse_texts(f"{opening}\n{THINKING}\nSo two texts, one on refunds", 4, cut) == []


@pytest.mark.parametrize(
    "text",
    [
        'Ideas:\n1. a draft\n2. another draft\n\n```json\n{"prompts": ["first text", "second text"]}\n```',
        '1. a draft\n2. another draft\n{"prompts": ["first text", "second text",]}',
        'Here they are:\n{"prompts": ["first text", "second text", "third te',
        'Here they are:\n```json\n["first text",\n "second text",\n "thi',
        '{"prompts": [\n  "first text", // one\n  "second text",\n]}',
        '<answer>{"prompts": ["first text", "second text"]}</answer>',
    ],
)
def test_json_is_found_where_it_stands(text: str) -> None:
    assert parse_texts(text, 5, cut=text.endswith(("te", "thi"))) == TWO


def test_broken_json_has_no_texts() -> None:
    assert parse_texts('{"prompts": ["he said "no" to me", "b"]}', 3) == []


def test_a_text_request_goes_on_with_its_list_unless_the_model_thought(tmp_path: Path) -> None:
    folder = write_small_task(tmp_path, imagine={"teacher": {"model": "openai/base", "api": "text"}})
    slice_ = folder.read_slice("shop")
    imaginer = Imaginer(folder.task, "shop", slice_, [], {}, "i")
    job = imaginer.plan_jobs(slice_.imagination, 2)[0]
    for text in (" first text\n2. second text", "<think>1. a draft</think>\n1. first text\n2. second text"):
        response = replace(build_filtered_response("no"), text=text, finish_reason="stop")
        assert imaginer.read_texts(job, response) == TWO
    cut = replace(build_filtered_response("no"), text="<think>1. a draft", finish_reason="length")
    assert imaginer.read_texts(job, cut) == []
