"""Which column is what, by names and by values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_dagster.intake.row_files import SourceRecord
from distill_dagster.new_task.columns import Columns, find_unknown_columns, guess_columns, summarize_columns


def records(*values: Any) -> list[SourceRecord]:
    return [SourceRecord(value, Path("rows.jsonl"), line) for line, value in enumerate(values, start=1)]


def table(count: int = 12, **columns: Any) -> list[SourceRecord]:
    """Records whose columns are made by functions of their number."""
    return records(*({name: make(n) for name, make in columns.items()} for n in range(count)))


def words(n: int) -> str:
    return f"some words that a customer wrote about matter {n}"


def two(n: int) -> str:
    return "ab"[n % 2]


@pytest.mark.parametrize(
    ("columns", "text", "answer", "kind"),
    [
        ({"Text": words, "Label": two}, ("Text",), ("Label",), "classification"),
        ({"Nachricht": words, "Kategorie": two}, ("Nachricht",), ("Kategorie",), "classification"),
        ({"free words": words, "issue_category": two}, ("free words",), ("issue_category",), "classification"),
        (
            {"premise": words, "hypothesis": words, "label": lambda n: n % 3},
            ("premise", "hypothesis"),
            ("label",),
            "nli",
        ),
        ({"question": words, "answer": words}, ("question",), ("answer",), "qa"),
        (
            {"context": words, "question": words, "answers": lambda n: {"text": ["x"]}},
            ("context", "question"),
            ("answers",),
            "qa",
        ),
        ({"question": words, "answer": lambda n: f"so it is\n#### {n}"}, ("question",), ("answer",), "math"),
        ({"question": words, "answer": lambda n: n}, ("question",), ("answer",), "math"),
        ({"instruction": words, "input": words, "output": words}, ("instruction", "input"), ("output",), "generation"),
        ({"prompt": words, "completion": words}, ("prompt",), ("completion",), "generation"),
        ({"dialogue": words, "summary": words}, ("dialogue",), ("summary",), "summarization"),
        ({"text": words, "answer": lambda n: {"count": n}}, ("text",), ("answer",), "extraction"),
        ({"text": words, "answer": lambda n: [{"name": "f", "arguments": {}}]}, ("text",), ("answer",), "tool_call"),
        ({"query": words, "tools": lambda n: "[]", "answers": lambda n: "[]"}, ("query",), ("answers",), "tool_call"),
    ],
)
def test_columns_and_kind_of_common_files(columns: Any, text: Any, answer: Any, kind: str) -> None:
    guess = guess_columns(summarize_columns(table(**columns)), Columns())
    assert (guess.columns.text, guess.columns.answer, guess.kind) == (text, answer, kind)
    assert guess.unsure == ()


def test_chats_are_found_by_their_name_and_as_bare_lists() -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    for found in (records({"messages": chat}), records({"conversations": chat}), records(chat)):
        guess = guess_columns(summarize_columns(found), Columns())
        assert (guess.kind, guess.unsure) == ("conversation", ())
        assert guess.columns.messages in ("messages", "conversations")


def test_a_column_of_few_values_is_only_a_candidate_for_labels() -> None:
    found = table(nr=lambda n: n, body=words, channel=lambda n: ["web", "phone"][n % 2])
    guess = guess_columns(summarize_columns(found), Columns())
    assert guess.columns.answer == ()
    assert guess.unsure == ("answer", "kind")
    assert guess.answer_candidates == ("channel",)


def test_a_named_column_needs_no_name_that_says_label() -> None:
    found = table(body=words, channel=lambda n: ["web", "phone"][n % 2], topic=lambda n: "xyz"[n % 3])
    guess = guess_columns(summarize_columns(found), Columns(answer=("channel",)))
    assert (guess.columns.answer, guess.kind) == (("channel",), "classification")
    assert guess.slice_candidates == ("topic",)


def test_the_longest_words_are_the_text_unless_two_columns_are_alike() -> None:
    sure = table(when=lambda n: f"2024-01-{n + 1:02}", who=lambda n: f"Ann {n} of Oslo", what=lambda n: words(n) * 2)
    assert guess_columns(summarize_columns(sure), Columns(), "generation").columns.text == ("what",)
    unsure = table(first=words, second=words, label=two)
    assert "text" in guess_columns(summarize_columns(unsure), Columns()).unsure


def test_an_id_is_a_column_that_says_so_and_has_no_value_twice() -> None:
    found = table(ticket_id=lambda n: f"T{n}", text=words, label=two)
    assert guess_columns(summarize_columns(found), Columns()).columns.id == "ticket_id"
    twice = table(ticket_id=lambda n: f"T{n // 2}", text=words, label=two)
    assert guess_columns(summarize_columns(twice), Columns()).columns.id is None
    assert guess_columns(summarize_columns(found), Columns(id="label")).columns.id == "label"


def test_a_path_into_a_record_is_a_column_too() -> None:
    found = records({"body": {"text": "hi"}, "label": "a"})
    assert find_unknown_columns(Columns(("body.text",), ("label",)), found) == []
    assert find_unknown_columns(Columns(("body.txt",), ("lable",)), found) == ["body.txt", "lable"]
