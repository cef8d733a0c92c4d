"""Prompts that came through the inbox: one append-only JSONL file for every slice of a task, never the user's YAML.

A process may be killed while it writes. Half a line at the end of a file is no prompt for a reader, and the next append
removes it; the inbox file it came from is still there and is taken again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distill_dagster.config import SLICE_KEY_PATTERN
from distill_dagster.core.errors import InputError, Problem

INBOX_SLICE_DESCRIPTION = "Prompts from the inbox; there is no slices/{key}.yaml beside them."
_REMEDY = "Mend or remove this line; prompts may be removed from this file at any time."


class AcceptedPrompt(BaseModel):
    """One prompt as it is stored: masked, with the inbox file it came from and when that was taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[str, Field(min_length=1, pattern=r"\S")]
    source: str
    batch: str = Field(description="one inbox file at one time, so that taking it twice is seen")
    accepted_at: str
    id: str | None = Field(default=None, description="what an imported prompt is called where it comes from")


def get_accepted_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.jsonl"


def list_accepted_slices(folder: Path | None) -> list[str]:
    """Slices that have an accepted prompt, sorted.

    Raises:
        InputError: the folder is a symbolic link.
    """
    if folder is None or not (folder.is_symlink() or folder.is_dir()):
        return []
    if folder.is_symlink():
        raise InputError([_make_link_problem(folder)])
    files = [f for f in folder.glob("*.jsonl") if SLICE_KEY_PATTERN.fullmatch(f.stem)]
    return sorted(f.stem for f in files if f.is_symlink() or _has_complete_line(f))


def read_accepted(path: Path) -> list[AcceptedPrompt]:
    """The prompts of one file; none where there is no file.

    Raises:
        InputError: lines are broken (all of them are named), or the file cannot be read.
    """
    if path.is_symlink():
        raise InputError([_make_link_problem(path)])
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError([Problem(path, f"cannot be read: {error.strerror}.", "Put a readable file there.")]) from error
    rows: list[AcceptedPrompt] = []
    problems: list[Problem] = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(AcceptedPrompt.model_validate_json(line))
        except ValidationError as error:
            if number < len(lines):  # the last one has no line break: half a line of a process that was killed
                problems.append(_make_line_problem(path, number, error))
    if problems:
        raise InputError(problems)
    return rows


def find_accepted_problems(folder: Path | None) -> Iterator[Problem]:
    """What is wrong in any of a task's files of accepted prompts."""
    try:
        for key in list_accepted_slices(folder):
            assert folder is not None
            try:
                read_accepted(get_accepted_path(folder, key))
            except InputError as error:
                yield from error.problems
    except InputError as error:
        yield from error.problems


def _has_complete_line(path: Path) -> bool:
    """Whether there is more in a file than half a line."""
    try:
        with path.open("rb") as handle:
            first = next((line for line in handle if line.strip()), b"")
    except OSError:
        return True  # reading it will say what is wrong
    return first.endswith(b"\n") or _is_complete_line(first)


def _is_complete_line(line: bytes) -> bool:
    try:
        AcceptedPrompt.model_validate_json(line)
    except ValidationError:
        return False
    return True


def _make_line_problem(path: Path, number: int, error: ValidationError) -> Problem:
    # Never the input itself: a line that somebody edited may hold anything.
    first = error.errors(include_input=False, include_url=False)[0]
    if first["type"] == "json_invalid":
        return Problem(path, "malformed JSON.", _REMEDY, line=number)
    field = ".".join(str(part) for part in first["loc"]) or None
    return Problem(path, f"{first['msg'].rstrip('.')}.", _REMEDY, line=number, field=field)


def _make_link_problem(path: Path) -> Problem:
    return Problem(path, "symbolic links are not followed.", "Put the file or folder itself there.")
