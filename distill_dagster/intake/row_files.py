"""Read the records of files that other programs wrote: CSV, JSONL, JSON, Parquet, or a folder of traces.

Everything that cannot be read is a problem with file and line. What the fields of a record mean is up to the caller.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.files import refuse_symlink

RECORD_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".json", ".parquet")
_TRACE_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class SourceRecord:
    """One record and its place. `line` is 1-based: the row in a Parquet file, None in a JSON file."""

    value: Any
    file: Path
    line: int | None

    def make_problem(self, message: str, remedy: str, field: str | None = None) -> Problem:
        """A problem with the place of this record."""
        return Problem(self.file, message, remedy, line=self.line, field=field)


def read_records(path: Path) -> list[SourceRecord]:
    """Read all records of a file, or of the JSON and JSONL files in a folder and its subfolders, sorted by name.

    A JSON file contains one record or a list of records. A list of chat messages is one record: a trace.

    Raises:
        InputError: something cannot be read. Each broken line is named.
    """
    problems: list[Problem] = []
    records = [record for file in _list_files(path) for record in _read_file(file, problems)]
    if not records and not problems:
        problems.append(Problem(path, "contains no record.", "Add at least one."))
    if problems:
        raise InputError(problems)
    return records


def get_by_path(value: Any, path: str) -> Any:
    """The value at a dotted path (`request.messages.-1.content`) or JSON pointer (`/request/messages/0`), or None.

    A field whose name contains a dot is found by its whole name first.
    """
    if isinstance(value, dict) and path in value:
        return value[path]
    for step in path[1:].split("/") if path.startswith("/") else path.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.removeprefix("-").isdecimal() and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def _list_files(path: Path) -> list[Path]:
    refuse_symlink(path)
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.suffix.lower() in _TRACE_SUFFIXES and not p.name.startswith(".")]
        return sorted(file for file in files if file.is_file() and not file.is_symlink())
    if not path.is_file():
        raise InputError([Problem(path, "there is no such file or folder.", "Fix the path.")])
    if path.suffix.lower() not in RECORD_SUFFIXES:
        suffixes = ", ".join(RECORD_SUFFIXES)
        raise InputError([Problem(path, "unsupported file type.", f"Use a file that ends with {suffixes}.")])
    return [path]


def _read_file(path: Path, problems: list[Problem]) -> Iterator[SourceRecord]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _read_parquet(path, problems)
        return
    try:
        content = path.read_bytes()
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        problems.append(Problem(path, f"invalid UTF-8 at byte {error.start}.", "Save the file as UTF-8.", line=line))
        return
    except OSError as error:
        problems.append(Problem(path, f"cannot be read: {error.strerror}.", "Put a readable file there."))
        return
    readers: dict[str, Callable[[Path, str, list[Problem]], Iterator[SourceRecord]]] = {
        ".csv": _read_csv,
        ".json": _read_json,
    }
    yield from readers.get(kind, _read_jsonl)(path, text, problems)


def _read_jsonl(path: Path, text: str, problems: list[Problem]) -> Iterator[SourceRecord]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and (value := _parse_json(path, line, number, problems)) is not None:
            yield SourceRecord(value, path, number)


def _read_json(path: Path, text: str, problems: list[Problem]) -> Iterator[SourceRecord]:
    value = _parse_json(path, text, None, problems)
    if isinstance(value, list) and not (value and all(isinstance(m, dict) and "role" in m for m in value)):
        yield from (SourceRecord(item, path, None) for item in value)
    elif value is not None:
        yield SourceRecord(value, path, None)


def _parse_json(path: Path, text: str, line: int | None, problems: list[Problem]) -> Any:
    remedy = "Write one JSON object on each line." if line else "Fix the JSON."
    try:
        value = json.loads(text)
        # An unpaired surrogate can be neither stored nor written.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = line + error.lineno - 1 if line else error.lineno
        problems.append(Problem(path, f"malformed JSON at column {error.colno}: {error.msg}.", remedy, line=where))
    except (ValueError, RecursionError) as error:  # also a huge number or deep nesting
        message = "contains an unpaired surrogate." if isinstance(error, UnicodeEncodeError) else "unreadable JSON."
        problems.append(Problem(path, message, remedy, line=line))
    else:
        if isinstance(value, dict | list):
            return value
        problems.append(Problem(path, "not an object.", remedy, line=line))
    return None


def _read_csv(path: Path, text: str, problems: list[Problem]) -> Iterator[SourceRecord]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        if len(set(header)) < len(header) or not all(name.strip() for name in header):
            remedy = "Give each column its own name in the first line."
            problems.append(Problem(path, "a column name is empty or duplicate.", remedy, line=1))
            return
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                message = f"{len(cells)} cells, while the first line names {len(header)} columns."
                problems.append(Problem(path, message, "Quote texts that contain commas.", line=line))
            elif cells:
                yield SourceRecord(dict(zip(header, cells, strict=True)), path, line)
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append(Problem(path, f"malformed CSV: {error}.", "Fix the line.", line=reader.line_num))


def _read_parquet(path: Path, problems: list[Problem]) -> Iterator[SourceRecord]:
    import polars as pl

    try:
        frame = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError):
        problems.append(Problem(path, "not a readable Parquet file.", "Write the file again."))
        return
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        yield SourceRecord(row, path, number)
