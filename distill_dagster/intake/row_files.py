"""Records of files that other programs wrote: CSV, JSONL, JSON, Parquet, or a folder of traces.

Strict about what cannot be read, with file and line; what a record means is for others to say.
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

RECORD_SUFFIXES = (".csv", ".jsonl", ".ndjson", ".json", ".parquet")
_TRACE_SUFFIXES = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class SourceRecord:
    """One record, and where it stands: `line` is 1-based; of a Parquet file it is the row."""

    value: Any
    file: Path
    line: int | None

    def problem(self, message: str, remedy: str, field: str | None = None) -> Problem:
        return Problem(self.file, message, remedy, line=self.line, field=field)


def read_records(path: Path) -> list[SourceRecord]:
    """All records of a file, or of the JSON and JSONL files in a folder and the folders below it, by name.

    A JSON file is one record, or a list of records; a list of chat messages is one record, a trace.

    Raises:
        InputError: something cannot be read; every broken line is named.
    """
    problems: list[Problem] = []
    records = [record for file in _list_files(path) for record in _read_file(file, problems)]
    if not records and not problems:
        problems.append(Problem(path, "holds no record.", "Put at least one there."))
    if problems:
        raise InputError(problems)
    return records


def get_by_path(value: Any, path: str) -> Any:
    """What a dotted path (`request.messages.-1.content`) or JSON pointer (`/request/messages/0`) leads to, else None.

    A field whose name holds a dot is found by its whole name first.
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
    if path.is_symlink():
        raise InputError([Problem(path, "symbolic links are not followed.", "Name the file or folder itself.")])
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.suffix.lower() in _TRACE_SUFFIXES and not p.name.startswith(".")]
        return sorted(p for p in found if p.is_file() and not p.is_symlink())
    if not path.is_file():
        raise InputError([Problem(path, "there is no such file or folder.", "Mend the path.")])
    if path.suffix.lower() not in RECORD_SUFFIXES:
        known = ", ".join(RECORD_SUFFIXES)
        raise InputError([Problem(path, "of this kind of file nothing is known.", f"Give one that ends with {known}.")])
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
        if line.strip() and (found := _parse_json(path, line, number, problems)) is not None:
            yield SourceRecord(found, path, number)


def _read_json(path: Path, text: str, problems: list[Problem]) -> Iterator[SourceRecord]:
    value = _parse_json(path, text, None, problems)
    if isinstance(value, list) and not (value and all(isinstance(m, dict) and "role" in m for m in value)):
        yield from (SourceRecord(one, path, None) for one in value)
    elif value is not None:
        yield SourceRecord(value, path, None)


def _parse_json(path: Path, text: str, line: int | None, problems: list[Problem]) -> Any:
    remedy = "Write one JSON object on each line." if line else "Mend the JSON."
    try:
        value = json.loads(text)
        # Half of a surrogate pair can be neither stored nor written.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = line + error.lineno - 1 if line else error.lineno
        problems.append(Problem(path, f"malformed JSON at column {error.colno}: {error.msg}.", remedy, line=where))
    except (ValueError, RecursionError) as error:  # half a character, a number of thousands of digits, endless nesting
        what = "half a character in an escape" if isinstance(error, UnicodeEncodeError) else "unreadable JSON"
        problems.append(Problem(path, f"{what}.", remedy, line=line))
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
            remedy = "Give every column a name of its own in the first line."
            problems.append(Problem(path, "a column has no name, or one that stands twice.", remedy, line=1))
            return
        line = reader.line_num + 1
        for cells in reader:
            if cells and len(cells) != len(header):
                message = f"{len(cells)} cells, while the first line names {len(header)} columns."
                problems.append(Problem(path, message, "Put texts with commas into quotation marks.", line=line))
            elif cells:
                yield SourceRecord(dict(zip(header, cells, strict=True)), path, line)
            line = reader.line_num + 1
    except csv.Error as error:
        problems.append(Problem(path, f"malformed CSV: {error}.", "Mend the line.", line=reader.line_num))


def _read_parquet(path: Path, problems: list[Problem]) -> Iterator[SourceRecord]:
    import polars as pl

    try:
        frame = pl.read_parquet(path, glob=False)
    except (pl.exceptions.PolarsError, OSError):
        problems.append(Problem(path, "not a readable Parquet file.", "Write it anew."))
        return
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        yield SourceRecord(row, path, number)
