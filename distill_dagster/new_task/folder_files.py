"""The files of a task folder as text: rows as JSON lines, slices as YAML, and a sheet to label."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from distill_dagster.new_task.rows import TableRow
from distill_dagster.new_task.split import Part

DEFAULT_SLICE = "main"


@dataclass(frozen=True)
class FolderRow:
    """A row of a table with its id, its slice and its place in the file it came from."""

    row: TableRow
    id: str
    slice: str
    source: str


class _BlockDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Writes texts of several lines as blocks, which a person can read."""


def _represent_text(dumper: Any, value: str) -> yaml.Node:
    style = "|" if "\n" in value else None
    node: yaml.Node = dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)
    return node


_BlockDumper.add_representer(str, _represent_text)


def render_rows(rows: Sequence[FolderRow], answer: str) -> str:
    """The lines of a JSONL file. `answer` is the field of the answer."""
    return "".join(f"{json.dumps(_build_line(row, answer), ensure_ascii=False)}\n" for row in rows)


def _build_line(row: FolderRow, answer: str) -> dict[str, Any]:
    prompt = {"messages": list(row.row.messages)} if row.row.messages else {"text": row.row.text}
    line = {"id": row.id, **prompt, answer: row.row.answer, "reasoning": row.row.reasoning}
    line |= {"slice": row.slice, "source": row.source}
    return {name: value for name, value in line.items() if value is not None}


def render_slice(description: str, rows: Sequence[FolderRow]) -> str:
    """A slice file. A seed whose answer is known keeps it as `reference`."""
    return _dump({"description": description}) + _dump({"seeds": [_build_seed(row) for row in rows]})


def _build_seed(row: FolderRow) -> dict[str, Any] | str:
    """A seed with the id and the answer that the file gives it, or the text alone if it gives neither."""
    seed: dict[str, Any] = {"id": row.id} if row.id == row.row.id else {}
    seed |= {"messages": list(row.row.messages)} if row.row.messages else {"text": row.row.text}
    if row.row.answer is not None:
        seed["reference"] = row.row.answer
    return row.row.text if seed.keys() == {"text"} else seed


def _dump(value: Any) -> str:
    text: str = yaml.dump(value, Dumper=_BlockDumper, sort_keys=False, allow_unicode=True, width=2**31 - 1)
    return text


def render_sheet(rows: Sequence[tuple[Part, FolderRow]], answer: str, reasoning: bool) -> str:
    """A CSV file with an empty column for the answer, which spreadsheets open as UTF-8."""
    out = io.StringIO()
    more = ["reasoning"] if reasoning else []
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(["id", "part", "slice", "text", answer, *more])
    for part, row in rows:
        writer.writerow([row.id, part, row.slice, row.row.text, "", *("" for _ in more)])
    return "\ufeff" + out.getvalue()
