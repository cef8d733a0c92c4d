"""Edits of a task.yaml: the parsed value changes as asked, and every other line stays as a person wrote it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml

from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.new_task.yaml_edit import keep_teacher, set_field

TEXT = """\
# Tickets, sorted.
kind: classification
instructions: |
  Sort the ticket.

  One label only.

# First the recording, then the small model.
teachers:
  # completions of last year
  frontier:
    model: replay/frontier
    price: {input: 1, output: 2}   # USD
  # without a network
  small:
    model: embedded/smollm2-135m-instruct   # 135M
    few_shot:
      per_label: 1

      draws: 2
  shorthand: openai/gpt-4o-mini

# Only what the recording does not know.
cascade: {}

students:
  one: {model: all-minilm-l6-v2, lora: {}}   # fast
  two:
    model: smollm2-135m-instruct
curation:
  filters:   # thresholds
    min_words: 2
"""


@pytest.mark.parametrize("name", ["frontier", "small", "shorthand"])
def test_one_teacher_is_kept(name: str) -> None:
    before, text = yaml.safe_load(TEXT), keep_teacher(TEXT, name)
    teacher = before.pop("teachers")[name]
    del before["cascade"]
    assert yaml.safe_load(text) == before | {"teacher": teacher}
    assert "First the recording" not in text
    assert "Only what the recording" not in text
    assert ("# without a network\nteacher:\n" in text) == (name == "small")
    assert text.startswith("# Tickets, sorted.\nkind:")
    assert text.endswith(TEXT[TEXT.index("\nstudents:") :])


def test_teachers_on_one_line() -> None:
    text = "teachers: {a: {model: x, q: 1}, b: foo/bar}\ncascade: {}\nitem: Ticket\n"
    assert keep_teacher(text, "a") == "teacher: {model: x, q: 1}\nitem: Ticket\n"
    assert keep_teacher(text, "b") == "teacher: foo/bar\nitem: Ticket\n"


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("kind", "nli"),
        ("instructions", "Sort: it # well"),
        ("teachers.small.few_shot.draws", 4),
        ("teachers.small.few_shot.seed", 7),
        ("teachers.small.calibration", "examples"),
        ("teachers.frontier.price.input", 0.5),
        ("teachers.frontier.price", None),
        ("students.one.lora.rank", 8),
        ("students.two.lora", {"rank": 4, "alpha": 8}),
        ("students", {"only": {"model": "x"}}),
        ("curation.filters.min_words", [1, "two"]),
        ("curation.filters.max_words", 9),
        ("evaluation.bootstrap_samples", 100),
    ],
)
def test_a_field_is_set_and_nothing_else(path: str, value: Any) -> None:
    expected = copy.deepcopy(yaml.safe_load(TEXT))
    *way, last = path.split(".")
    block = expected
    for name in way:
        block = block.setdefault(name, {})
    block[last] = value
    text = set_field(TEXT, path.split("."), value)
    assert yaml.safe_load(text) == expected
    replaced = path in ("instructions", "students")  # a block became one line
    kept = [line for line in TEXT.splitlines() if line in text.splitlines()]
    assert len(kept) >= len(TEXT.splitlines()) - (5 if replaced else 1)


def test_a_text_without_a_last_line_break() -> None:
    assert yaml.safe_load(set_field("a: 1\nb: {c: 2}", ["b", "d"], 3)) == {"a": 1, "b": {"c": 2, "d": 3}}
    assert yaml.safe_load(set_field("a: 1", ["b", "d"], 3)) == {"a": 1, "b": {"d": 3}}


def test_the_bundled_tasks_can_be_edited() -> None:
    for path in sorted((PROJECT_FOLDER / "data" / "tasks").glob("*/task.yaml")):
        text = path.read_text(encoding="utf-8")
        changed = set_field(text, ["evaluation", "latency_items"], 3)
        expected = yaml.safe_load(text)
        expected["evaluation"]["latency_items"] = 3
        assert yaml.safe_load(changed) == expected


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(DistillError, match=r"no teacher 'large'\. Known: frontier, small, shorthand"):
        keep_teacher(TEXT, "large")
    with pytest.raises(DistillError, match="It has one `teacher`"):
        keep_teacher("teacher: openai/gpt-4o-mini\n", "large")
    with pytest.raises(DistillError, match=r"teachers\.shorthand is not a mapping of fields"):
        set_field(TEXT, ["teachers", "shorthand", "draws"], 1)
