"""Read the prompts that came through the inbox or an import: one append-only JSONL file for each slice of a task.

`intake.accepted` appends to these files. A process that is killed while it appends leaves an unfinished last line.
Readers ignore it, the next append removes it, and the inbox file that it came from is taken again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from distill_dagster.config import SLICE_KEY_PATTERN
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.files import refuse_symlink
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.tasks.append_only import read_lines
from distill_dagster.tasks.turns import Turn

INBOX_SLICE_DESCRIPTION = "Prompts from the inbox; there is no slices/{key}.yaml for them."
_REMEDY = "Fix or remove this line. You may remove prompts from this file at any time."


class AcceptedPrompt(BaseModel):
    """One prompt as it is stored: masked, with the file it came from and when that file was taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    text: Annotated[str, Field(min_length=1, pattern=r"\S")]
    source: str
    batch: str = Field(description="identifies one file at one time, so that taking it twice has no effect")
    accepted_at: str
    id: str | None = Field(default=None, description="the id of an imported prompt in the file it comes from")
    messages: tuple[Turn, ...] | None = Field(
        default=None, description="the turns of an imported conversation; the text is that of its user turns"
    )

    @property
    def content(self) -> str:
        """The whole prompt as one text: what makes two prompts different."""
        return self.text if self.messages is None else to_canonical_json([turn.model_dump() for turn in self.messages])


_LINE_ADAPTER = TypeAdapter(AcceptedPrompt)


def get_accepted_path(folder: Path, key: str) -> Path:
    """The file of one slice; `folder` is the task's folder of accepted prompts."""
    return folder / f"{key}.jsonl"


def list_accepted_slices(folder: Path | None) -> list[str]:
    """The keys of all slices that have an accepted prompt, sorted.

    Raises:
        InputError: the folder is a symbolic link.
    """
    if folder is None or not (folder.is_symlink() or folder.is_dir()):
        return []
    refuse_symlink(folder)
    files = [path for path in folder.glob("*.jsonl") if SLICE_KEY_PATTERN.fullmatch(path.stem)]
    return sorted(path.stem for path in files if _has_prompt(path))


def read_accepted(path: Path) -> list[AcceptedPrompt]:
    """The prompts of one file. A missing file has no prompts.

    Raises:
        InputError: lines are broken (all of them are named), or the file cannot be read.
    """
    return read_accepted_until(path)[0]


def read_accepted_until(path: Path) -> tuple[list[AcceptedPrompt], int]:
    """As `read_accepted`, and the byte offset where the last complete line ends."""
    lines = read_lines(path, _LINE_ADAPTER, _REMEDY)
    return [prompt for prompt, _ in lines], lines[-1][1] if lines else 0


def find_accepted_problems(folder: Path | None) -> Iterator[Problem]:
    """The problems in all of a task's files of accepted prompts."""
    try:
        for key in list_accepted_slices(folder):
            assert folder is not None
            try:
                read_accepted(get_accepted_path(folder, key))
            except InputError as error:
                yield from error.problems
    except InputError as error:
        yield from error.problems


def _has_prompt(path: Path) -> bool:
    """Whether a file contains a prompt, not only an unfinished line. Reads the first line only."""
    if path.is_symlink():
        return True  # reading it names the problem
    try:
        with path.open("rb") as handle:
            first = next((line for line in handle if line.strip()), b"")
    except OSError:
        return True  # reading it names the problem
    return first.endswith(b"\n") or _is_complete(first)


def _is_complete(line: bytes) -> bool:
    try:
        _LINE_ADAPTER.validate_json(line)
    except ValidationError:
        return False
    return True
