"""Read tables of texts: CSV with any separator, and the rows of a sheet.

Files of spreadsheets and databases differ in their separators, in how they escape quotes, and in the empty cells that
they leave behind. All of that is detected.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from distill_dagster.core.errors import Problem
from distill_dagster.core.formatting import count_noun

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
"""The separators that are detected, with their names in messages."""
Rows = Iterable[tuple[int, list[str]]]
"""The lines of a table: the number of the line in the file, and its cells."""
_SAMPLE_CHARACTERS, _SAMPLE_ROWS = 200_000, 200

csv.field_size_limit(2**31 - 1)  # the default refuses cells of more than 131,072 characters


def read_separated(
    path: Path, text: str, problems: list[Problem], delimiter: str | None = None
) -> tuple[list[tuple[int, dict[str, str]]], str]:
    """The records of a CSV text, each with the line on which it begins, and the separator.

    The first line names the columns. Problems are added to `problems`.
    """
    first, _, rest = text.partition("\n")
    line = 1
    if (declared := first.rstrip("\r")).lower().startswith("sep=") and len(declared) == 5:  # written by Excel
        delimiter, text, line = delimiter or declared[4], rest, 2
    delimiter = delimiter or detect_delimiter(text)
    found, broken = _read(path, text, line, delimiter, escape=None)
    if broken and '\\"' in text:  # MySQL and others write \" for a quote in a cell
        escaped, still_broken = _read(path, text, line, delimiter, escape="\\")
        if not still_broken:
            found, broken = escaped, []
    problems += broken
    return found, delimiter


def detect_delimiter(text: str) -> str:
    """The separator of a CSV text: the one that gives the most lines as many cells as the first line has."""
    sample = text[:_SAMPLE_CHARACTERS]
    best, best_score = ",", (0.0, 0)
    for delimiter in DELIMITERS:
        sizes = []
        for cells in csv.reader(io.StringIO(sample, newline=""), delimiter=delimiter):
            if any(cell.strip() for cell in cells):
                sizes.append(len(cells))
            if len(sizes) > _SAMPLE_ROWS:
                break
        if len(sample) < len(text) and len(sizes) > 2:
            sizes.pop()  # the sample may end within a line
        if not sizes or sizes[0] < 2:
            continue
        score = (sizes.count(sizes[0]) / len(sizes), sizes[0])
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _read(
    path: Path, text: str, line: int, delimiter: str, escape: str | None
) -> tuple[list[tuple[int, dict[str, str]]], list[Problem]]:
    problems: list[Problem] = []
    rows = _iterate_rows(path, text, line, delimiter, escape, problems)
    name = DELIMITERS.get(delimiter, f"{delimiter!r}")
    hint = f"The first line names the columns, separated by {name}: quote texts that contain {name}"
    records = list(iterate_table(path, rows, problems, f"{hint}, or name another separator with --delimiter."))
    return records, problems


def _iterate_rows(
    path: Path, text: str, line: int, delimiter: str, escape: str | None, problems: list[Problem]
) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        strict=True,
        escapechar=escape,
        doublequote=escape is None,
    )
    while True:
        number = line + reader.line_num
        try:
            yield number, next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = "Fix the line: write a quote within a quoted text twice."
            problems.append(Problem(path, f"malformed CSV: {error}.", remedy, line=number))


def iterate_table(path: Path, rows: Rows, problems: list[Problem], remedy: str) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of a table as mappings of its columns; the first row that is not empty names them.

    A column without a name is called by its place, such as `column 1`. Empty rows, and empty cells behind the last
    column, are left out.

    Args:
        remedy: what to do about a row with another number of cells than the first.
    """
    header: list[str] = []
    for line, cells in rows:
        if not any(cell.strip() for cell in cells):
            continue
        if not header:
            header = _name_columns(cells)
            if repeated := [name for name, times in Counter(header).items() if times > 1]:
                message = f"the column name {repeated[0]!r} is duplicate."
                problems.append(Problem(path, message, "Give each column its own name in the first line.", line=line))
                return
            continue
        while len(cells) > len(header) and not cells[-1].strip():
            cells = cells[:-1]
        if len(cells) != len(header):
            counts = (
                f"{count_noun(len(cells), 'cell')}, while the first line names {count_noun(len(header), 'column')}."
            )
            problems.append(Problem(path, counts, remedy, line=line))
        else:
            yield line, dict(zip(header, cells, strict=True))


def _name_columns(cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    return [name or f"column {place}" for place, name in enumerate(names, start=1)]
