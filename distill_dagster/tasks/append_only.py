"""Read the append-only JSONL files of a slice, whose last line a killed process may have left unfinished."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.files import refuse_symlink

T = TypeVar("T")


def read_lines(
    path: Path, adapter: TypeAdapter[T], remedy: str, is_union: bool = False, may_be_cut: bool = True
) -> list[tuple[T, int]]:
    """The lines of a file, each with the byte offset where it ends. A missing file has no lines.

    An unfinished last line is left out; the next append removes it.

    Args:
        remedy: what to do about a broken line.
        is_union: whether the adapter chooses among several models; locations of errors then begin with the choice.
        may_be_cut: whether a killed process may have left the last line unfinished. A person leaves none.

    Raises:
        InputError: lines are broken (all of them are named), the file cannot be read, or it is a symbolic link.
    """
    refuse_symlink(path.parent, path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError([Problem(path, f"cannot be read: {error.strerror}.", "Put a readable file there.")]) from error
    values: list[tuple[T, int]] = []
    problems: list[Problem] = []
    lines = content.split(b"\n")
    end = 0
    for number, line in enumerate(lines, start=1):
        end = min(end + len(line) + 1, len(content))
        if not line.strip():
            continue
        try:
            values.append((adapter.validate_json(line), end))
        except ValidationError as error:
            # The last line has no line break: a killed process did not finish it.
            if number < len(lines) or not may_be_cut:
                problems.append(_make_line_problem(path, number, error, remedy, int(is_union)))
    if problems:
        raise InputError(problems)
    return values


def _make_line_problem(path: Path, number: int, error: ValidationError, remedy: str, skip: int) -> Problem:
    # Never show the input itself: an edited line may contain anything.
    first = error.errors(include_input=False, include_url=False)[0]
    if first["type"] == "json_invalid":
        return Problem(path, "malformed JSON.", remedy, line=number)
    field = ".".join(str(part) for part in first["loc"][skip:]) or None
    return Problem(path, f"{first['msg'].rstrip('.')}.", remedy, line=number, field=field)
