"""What is written is read again as it was, whatever a text contains."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.intake.row_files import SourceRecord
from distill_dagster.new_task.folder_files import FolderRow, render_rows, render_sheet, render_slice
from distill_dagster.new_task.rows import TableRow
from distill_dagster.new_task.task_yaml import TaskSketch, quote, render_task_yaml
from distill_dagster.tasks.rows import LabelledRow, SliceFile

# Everything that a file can contain but for unpaired surrogates, with what YAML and JSON lines trip over more often.
ODD = st.sampled_from(
    ["\n", "\r\n", "\t", ": ", " #", "- ", "'", '"', "\u2028", "\u0085", "\ufeff", "\x00", "🦊", "|", "%", " "]
)
TEXTS = st.lists(ODD | st.text(st.characters(exclude_categories=["Cs"]), max_size=8), min_size=1, max_size=6).map(
    "".join
)


def make_row(text: str, answer: Any = None) -> FolderRow:
    record = SourceRecord({}, Path("a.csv"), 2)
    return FolderRow(TableRow(record, text, text, answer), "id-1", "main", "a.csv:2")


@given(text=TEXTS.filter(str.strip), answer=TEXTS)
def test_a_slice_and_its_seeds_are_read_as_they_were(text: str, answer: str) -> None:
    content = render_slice(f"Rows of {text}.", [make_row(text, answer), make_row(text)])
    read = SliceFile.model_validate(yaml.safe_load(content))
    assert [seed.text for seed in read.seeds] == [text, text]
    assert [seed.reference for seed in read.seeds] == [answer, None]
    assert read.description == f"Rows of {text}."


@given(text=TEXTS.filter(str.strip))
def test_a_row_is_one_line_and_read_as_it_was(text: str) -> None:
    content = render_rows([make_row(text, "a"), make_row(text, "b")], "label")
    lines = [line for line in content.split("\n") if line]
    rows = [LabelledRow.model_validate(json.loads(line)) for line in lines]
    assert [(row.text, row.label, row.source) for row in rows] == [(text, "a", "a.csv:2"), (text, "b", "a.csv:2")]


@given(text=TEXTS)
def test_a_scalar_of_task_yaml_is_read_as_it_was(text: str) -> None:
    written = quote(text)
    assert yaml.safe_load(f"name: {written}  # a comment")["name"] == text
    assert "\n" not in written


@pytest.mark.parametrize(
    "name", ["yes", "No", "null", "1", "1.0", "~", "a: b", "#x", "- x", "2024-01-01", "a 'b'", "ÄÖ", "日本"]
)
def test_labels_that_look_like_something_else_stay_texts(name: str) -> None:
    parts = {"examples": 4, "dev": 4, "golden": 4, "seeds": 40}
    text = render_task_yaml(TaskSketch("mail", "a.csv", "classification", parts, labels=[(name, 5), ("other", 5)]))  # type: ignore[arg-type]
    assert [label["name"] for label in yaml.safe_load(text)["labels"]] == [name, "other"]
    assert all(isinstance(label["description"], str) for label in yaml.safe_load(text)["labels"])


def test_a_sheet_opens_in_spreadsheets_and_has_a_column_to_fill_in() -> None:
    content = render_sheet([("dev", make_row('one, "two"\nthree'))], "label", reasoning=False)
    assert content.startswith("\ufeff")
    [row] = csv.DictReader(io.StringIO(content.removeprefix("\ufeff"), newline=""))
    assert row == {"id": "id-1", "part": "dev", "slice": "main", "text": 'one, "two"\nthree', "label": ""}
