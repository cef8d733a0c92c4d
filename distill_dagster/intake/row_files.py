"""Read the records of files that other programs wrote: CSV, sheets, JSONL, JSON, Parquet, or a folder of traces.

Everything that cannot be read is a problem with its file and line. What the fields of a record mean is up to the
caller.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.files import refuse_symlink
from distill_dagster.intake.chats import is_chat, read_chat
from distill_dagster.intake.separated_values import DELIMITERS, iterate_table, read_separated
from distill_dagster.intake.text_encoding import decode_text

SHEET_SUFFIXES = (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods")
TABLE_SUFFIXES = (".csv", ".tsv")
_TRACE_SUFFIXES = (".jsonl", ".ndjson", ".json")
RECORD_SUFFIXES = (*TABLE_SUFFIXES, *_TRACE_SUFFIXES, ".parquet", *SHEET_SUFFIXES)
_LIST_FIELDS = ("data", "records", "rows", "items", "results", "examples", "traces")
"""Fields of an export in which its records are."""
_EXPORT_FIELDS = {
    *("object", "has_more", "first_id", "last_id", "meta", "metadata", "pagination", "links", "version", "schema"),
    *("next", "next_cursor", "next_page", "cursor", "page", "limit", "offset", "total", "count", "total_count"),
    *("columns", "features", "num_rows_total", "num_rows_per_page", "partial", "truncated", "name", "description"),
}
"""What else an export contains."""
_ID_FIELDS = ("id", "custom_id", "_id", "uuid", "record_id", "trace_id")


@dataclass(frozen=True)
class FileFormat:
    """How to read a file, where that is not to be detected.

    Attributes:
        delimiter: the separator of a CSV file.
        encoding: the encoding of a text file, by its name in Python.
        sheet: the name of a sheet.
    """

    delimiter: str | None = None
    encoding: str | None = None
    sheet: str | None = None


@dataclass(frozen=True)
class SourceRecord:
    """One record and its place.

    Attributes:
        line: 1-based; the row in a Parquet file or a sheet, None in a JSON file.
        name: the number and id of a record that a line does not name.
    """

    value: Any
    file: Path
    line: int | None
    name: str | None = None

    def make_problem(self, message: str, remedy: str, field: str | None = None) -> Problem:
        """A problem with the place of this record."""
        return self.locate(Problem(self.file, message, remedy, field=field))

    def locate(self, problem: Problem) -> Problem:
        """A problem that was found elsewhere in a copy of this record, with the place of this record."""
        message = f"{self.name}: {problem.message}" if self.name else problem.message
        return replace(problem, file=self.file, line=self.line, message=message)


@dataclass
class RecordSet:
    """The records of a file or folder.

    Attributes:
        problems: what cannot be read, each with its line.
        remarks: what was detected or chosen, such as an encoding.
    """

    records: list[SourceRecord] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def read_records(path: Path, file_format: FileFormat | None = None) -> list[SourceRecord]:
    """Read all records of a file, or of the JSON and JSONL files in a folder and its subfolders, sorted by name.

    A JSON file contains one record or a list of records. A list of chat messages is one record: a trace.

    Raises:
        InputError: something cannot be read. Each broken line is named.
    """
    found = scan_records(path, file_format)
    if found.problems:
        raise InputError(found.problems)
    return found.records


def scan_records(path: Path, file_format: FileFormat | None = None) -> RecordSet:
    """As `read_records`, with the records that can be read next to the problems of the others.

    Raises:
        InputError: there is no record, no such file, or its type is not supported.
        DistillError: an option of `file_format` does not fit the file.
    """
    file_format = file_format or FileFormat()
    found = RecordSet()
    for file in _list_files(path):
        _check_format(file, file_format)
        found.records += _read_file(file, file_format, found)
    if not found.records and not found.problems:
        found.problems.append(Problem(path, "contains no record.", "Add at least one."))
    if not found.records:
        raise InputError(found.problems)
    return found


def get_by_path(value: Any, path: str) -> Any:
    """The value at a dotted path (`request.messages.-1.content`) or JSON pointer (`/request/messages/0`), or None.

    A field whose name contains a dot is found by its whole name first. A path leads into JSON in a text, too.
    """
    if isinstance(value, dict) and path in value:
        return value[path]
    for step in path[1:].split("/") if path.startswith("/") else path.split("."):
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                return None
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.removeprefix("-").isdecimal() and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            return None
    return value


def reject_repeated_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON (`object_pairs_hook`). Python's `json` keeps the last of two equal keys.

    Raises:
        ValueError: a key is duplicate.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        name = next(name for name, times in Counter(name for name, _ in pairs).items() if times > 1)
        raise ValueError(f"duplicate field {name!r}")
    return value


def _list_files(path: Path) -> list[Path]:
    refuse_symlink(path)
    if path.is_dir():
        files = [file for file in path.rglob("*") if file.suffix.lower() in _TRACE_SUFFIXES]
        visible = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        return sorted(file for file in visible if file.is_file() and not file.is_symlink())
    if not path.is_file():
        raise InputError([Problem(path, "there is no such file or folder.", "Fix the path.")])
    if path.suffix.lower() not in RECORD_SUFFIXES:
        suffixes = ", ".join(RECORD_SUFFIXES)
        raise InputError([Problem(path, "unsupported file type.", f"Use a file that ends with {suffixes}.")])
    return [path]


def _check_format(path: Path, file_format: FileFormat) -> None:
    kind = path.suffix.lower()
    if file_format.delimiter is not None and kind not in TABLE_SUFFIXES:
        raise DistillError(f"--delimiter is for CSV files; {path.name} is none.")
    if file_format.delimiter is not None and (len(file_format.delimiter) != 1 or file_format.delimiter in '"\r\n'):
        raise DistillError(f"{file_format.delimiter!r} cannot separate columns. Give one character, such as ';'.")
    if file_format.sheet is not None and kind not in SHEET_SUFFIXES:
        raise DistillError(f"--sheet is for files with sheets ({', '.join(SHEET_SUFFIXES)}); {path.name} is none.")
    if file_format.encoding is not None and kind in (".parquet", *SHEET_SUFFIXES):
        raise DistillError(f"--encoding is for text files; {path.name} is none.")


def _read_file(path: Path, file_format: FileFormat, found: RecordSet) -> Iterator[SourceRecord]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        yield from _read_parquet(path, found.problems)
        return
    if kind in SHEET_SUFFIXES:
        yield from _read_sheet(path, file_format.sheet, found)
        return
    is_table = kind in TABLE_SUFFIXES
    try:
        content = path.read_bytes()
        decoded = decode_text(content, file_format.encoding, guess=is_table)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        encoding = "UTF-8" if error.encoding == "utf-8" else error.encoding
        remedy = "Save the file as UTF-8, or name its encoding with --encoding."
        found.problems.append(Problem(path, f"invalid {encoding} at byte {error.start}.", remedy, line=line))
        return
    except LookupError:
        raise DistillError(f"unknown encoding {file_format.encoding!r}. Use a name such as cp1252.") from None
    except OSError as error:
        found.problems.append(Problem(path, f"cannot be read: {error.strerror}.", "Put a readable file there."))
        return
    if decoded.is_guess:
        found.remarks.append(f"{path.name} was read as {decoded.encoding}; --encoding names another encoding.")
    if is_table:
        delimiter = file_format.delimiter or ("\t" if kind == ".tsv" else None)
        rows, delimiter = read_separated(path, decoded.text, found.problems, delimiter)
        if delimiter != "," and file_format.delimiter is None and kind != ".tsv":
            name = DELIMITERS.get(delimiter, repr(delimiter))
            found.remarks.append(f"the columns of {path.name} are separated by {name}.")
        yield from (SourceRecord(value, path, line) for line, value in rows)
        return
    read: Callable[[Path, str, list[Problem]], list[SourceRecord]] = _read_json if kind == ".json" else _read_jsonl
    yield from read(path, decoded.text, found.problems)


def _read_jsonl(path: Path, text: str, problems: list[Problem]) -> list[SourceRecord]:
    records: list[SourceRecord] = []
    broken: list[Problem] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and (value := _parse_json(path, line, number, broken)) is not None:
            is_page = isinstance(value, list) or value.get("object") == "list"
            items = _unwrap_list(value) if is_page else None
            records += [SourceRecord(value, path, number)] if items is None else _name_records(items, path, number)
    if broken and (whole := _read_whole(path, text)):  # a JSON file under this name
        return whole
    problems += broken
    return records


def _read_json(path: Path, text: str, problems: list[Problem]) -> list[SourceRecord]:
    broken: list[Problem] = []
    value = _parse_json(path, text, None, broken)
    if value is None and "Extra data" in broken[0].message:  # JSONL under this name
        records: list[SourceRecord] = []
        lines: list[Problem] = []
        records = _read_jsonl(path, text, lines)
        if records:
            problems += lines
            return records
    problems += broken
    if value is None:
        return []
    items = _unwrap_list(value)
    return [SourceRecord(value, path, None)] if items is None else _name_records(items, path, None)


def _read_whole(path: Path, text: str) -> list[SourceRecord]:
    value = _parse_json(path, text, None, [])
    items = None if value is None else _unwrap_list(value)
    return [] if value is None else [SourceRecord(value, path, None)] if items is None else _name_records(items, path)


def _unwrap_list(value: Any) -> list[Any] | None:
    """The records in a list or an export; None for one record. A list of chat messages is one record."""
    if isinstance(value, list):
        return None if _is_trace(value) else value
    name = next((name for name in _LIST_FIELDS if isinstance(value.get(name), list)), None)
    if name is None or not set(value) - {name} <= _EXPORT_FIELDS:
        return None
    items = value[name]
    if _is_trace(items) or not all(isinstance(item, dict) for item in items):
        return None
    # The Hugging Face datasets server wraps each row once more.
    return [item["row"] if isinstance(item.get("row"), dict) and "row_idx" in item else item for item in items]


def _is_trace(items: list[Any]) -> bool:
    """Whether a list is one chat. Several texts of people whose role is `user` are no chat, nor are labelled texts."""
    if not is_chat(items) or any("label" in item for item in items):
        return False
    return len(items) == 1 or {turn.role for turn in read_chat(items)} != {"user"}


def _name_records(items: list[Any], path: Path, line: int | None = None) -> list[SourceRecord]:
    return [SourceRecord(item, path, line, _make_name(number, item)) for number, item in enumerate(items, start=1)]


def _make_name(number: int, item: Any) -> str:
    fields = item if isinstance(item, dict) else {}
    id_ = next((fields[name] for name in _ID_FIELDS if isinstance(fields.get(name), str | int)), None)
    return f"record {number}" if id_ is None else f"record {number} (id {str(id_)[:60]})"


def _parse_json(path: Path, text: str, line: int | None, problems: list[Problem]) -> Any:
    remedy = "Write one JSON object on each line." if line else "Fix the JSON."
    try:
        value = json.loads(text, object_pairs_hook=reject_repeated_fields)
        # An unpaired surrogate can be neither stored nor written.
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        where = line + error.lineno - 1 if line else error.lineno
        problems.append(Problem(path, f"malformed JSON at column {error.colno}: {error.msg}.", remedy, line=where))
    except UnicodeEncodeError:
        problems.append(Problem(path, "contains an unpaired surrogate.", remedy, line=line))
    except (ValueError, RecursionError) as error:  # a duplicate field, a huge number, deep nesting
        is_repeated = str(error).startswith("duplicate field")
        message = f"{error}." if is_repeated else "unreadable JSON."
        problems.append(Problem(path, message, "Write each field once." if is_repeated else remedy, line=line))
    else:
        if isinstance(value, dict | list):
            return value
        problems.append(Problem(path, "not an object.", remedy, line=line))
    return None


def _read_parquet(path: Path, problems: list[Problem]) -> Iterator[SourceRecord]:
    import polars as pl

    try:
        frame = pl.read_parquet(path, glob=False)
        classes = _read_class_names(pl.read_parquet_metadata(path).get("huggingface", ""))
    except (pl.exceptions.PolarsError, OSError):
        problems.append(Problem(path, "not a readable Parquet file.", "Write the file again."))
        return
    for number, row in enumerate(frame.iter_rows(named=True), start=1):
        for name, names in classes.items():
            if isinstance(row.get(name), int) and 0 <= row[name] < len(names):
                row[name] = names[row[name]]
        yield SourceRecord(row, path, number)


def _read_class_names(metadata: str) -> dict[str, list[str]]:
    """The class names of columns that contain class numbers, as Hugging Face's `datasets` writes them."""
    try:
        features = json.loads(metadata)["info"]["features"]
        return {
            name: [str(label) for label in feature["names"]]
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and "names" in feature
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _read_sheet(path: Path, sheet: str | None, found: RecordSet) -> Iterator[SourceRecord]:
    from python_calamine import CalamineError, CalamineWorkbook

    try:
        with CalamineWorkbook.from_path(path) as book:
            names = list(book.sheet_names)
            if sheet is not None and sheet not in names:
                raise DistillError(f"{path.name} has no sheet {sheet!r}. It has: {', '.join(names)}.")
            rows: list[list[Any]] = []
            chosen = ""
            for chosen in names if sheet is None else [sheet]:  # the first that is not empty
                if rows := book.get_sheet_by_name(chosen).to_python(skip_empty_area=False):
                    break
    except (CalamineError, OSError, ValueError) as error:
        message = f"not a readable file of sheets: {str(error)[:200]}."
        found.problems.append(Problem(path, message, "Save it again, without a password, or save it as CSV."))
        return
    if sheet is None and len(names) > 1:
        found.remarks.append(f"the sheet {chosen!r} of {path.name} was read; --sheet names another sheet.")
    lines = ((line, [_format_cell(cell) for cell in cells]) for line, cells in enumerate(rows, start=1))
    for line, value in iterate_table(path, lines, found.problems, "Give each column a name in the first line."):
        yield SourceRecord(value, path, line)


def _format_cell(cell: Any) -> str:
    """The text of a cell, as a CSV file would contain it: 7.0 is 7."""
    if isinstance(cell, bool):
        return str(cell).lower()
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)
