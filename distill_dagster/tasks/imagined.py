"""Prompts that the teacher imagined: one append-only JSONL file for every slice, never the user's YAML.

A file holds one prompt a line. The prompts of a round come first and then a line that ends the round: a reader takes
prompts of ended rounds alone, so a process that is killed in between leaves nothing half done, and the next append
removes what it left. A line `fresh` begins a new generation; the prompts before it are retired, and stay in the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from distill_dagster.core.errors import InputError, Problem

IMAGINED_FOLDER = "imagined"
"""Below a task's folder of accepted prompts."""
_REMEDY = "Mend or remove this line; a line with a prompt may be removed at any time."


class _FileLine(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImaginedPrompt(_FileLine):
    """One accepted prompt: how it came about and who wrote it."""

    kind: Literal["prompt"] = "prompt"
    text: Annotated[str, Field(min_length=1, pattern=r"\S")]
    method: str
    axes: dict[str, str] = {}
    parent_prompt_id: str | None = None
    target_label: str | None = None
    teacher: str
    template_version: str
    request_key: str
    imagined_at: str


class ImagineRound(_FileLine):
    """The end of a round: requests sent for it, those without an answer, and what of the answers was left out."""

    kind: Literal["round"] = "round"
    requests: Annotated[int, Field(ge=0)]
    failed: Annotated[int, Field(ge=0)] = 0
    duplicates: Annotated[int, Field(ge=0)] = 0
    near_duplicates: Annotated[int, Field(ge=0)] = 0
    ended_at: str


class GenerationStart(_FileLine):
    """From here on all is asked anew."""

    kind: Literal["fresh"] = "fresh"
    asked_at: str


_LINE_ADAPTER: TypeAdapter[ImaginedPrompt | ImagineRound | GenerationStart] = TypeAdapter(
    Annotated[ImaginedPrompt | ImagineRound | GenerationStart, Field(discriminator="kind")]
)


@dataclass(frozen=True)
class ImagineHistory:
    """What was imagined for one slice. `prompts` and `rounds` are those of the current generation."""

    generation: int = 0
    prompts: tuple[ImaginedPrompt, ...] = ()
    rounds: tuple[ImagineRound, ...] = ()
    retired: int = 0

    @property
    def requests(self) -> int:
        """The number of the next request of this generation."""
        return sum(one.requests for one in self.rounds)


def get_imagined_path(accepted: Path, key: str) -> Path:
    """The file of one slice; `accepted` is the task's folder of accepted prompts."""
    return accepted / IMAGINED_FOLDER / f"{key}.jsonl"


def read_imagined(path: Path) -> ImagineHistory:
    """What stands in one file; nothing where there is no file.

    Raises:
        InputError: lines are broken (all of them are named), or the file cannot be read.
    """
    return _parse_lines(path, _read_content(path))[0]


def _read_content(path: Path) -> bytes:
    for place in (path, path.parent):
        if place.is_symlink():
            remedy = "Put the file or folder itself there."
            raise InputError([Problem(place, "symbolic links are not followed.", remedy)])
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise InputError([Problem(path, f"cannot be read: {error.strerror}.", "Put a readable file there.")]) from error


def _parse_lines(path: Path, content: bytes) -> tuple[ImagineHistory, int]:
    """The imagination, and where the last ended round ends, in bytes."""
    generation = retired = place = end = 0
    prompts: list[ImaginedPrompt] = []
    open_: list[ImaginedPrompt] = []
    rounds: list[ImagineRound] = []
    problems: list[Problem] = []
    lines = content.split(b"\n")
    for number, raw in enumerate(lines, start=1):
        place += len(raw) + 1
        if not raw.strip():
            continue
        try:
            line = _LINE_ADAPTER.validate_json(raw)
        except ValidationError as error:
            if number < len(lines):  # the last one has no line break: half a line of a process that was killed
                problems.append(_make_line_problem(path, number, error))
            continue
        if isinstance(line, ImaginedPrompt):
            open_.append(line)
            continue
        if isinstance(line, GenerationStart):
            generation, retired = generation + 1, retired + len(prompts)
            prompts, rounds = [], []
        else:
            prompts, rounds = prompts + open_, [*rounds, line]
        open_, end = [], min(place, len(content))
    if problems:
        raise InputError(problems)
    return ImagineHistory(generation, tuple(prompts), tuple(rounds), retired), end


def find_imagined_problems(accepted: Path | None) -> Iterator[Problem]:
    """What is wrong in any of a task's files of imagined prompts."""
    files = sorted((accepted / IMAGINED_FOLDER).glob("*.jsonl")) if accepted is not None else []
    for path in files:
        try:
            read_imagined(path)
        except InputError as error:
            yield from error.problems


def _make_line_problem(path: Path, number: int, error: ValidationError) -> Problem:
    # Never the input itself: a line that somebody edited may hold anything.
    first = error.errors(include_input=False, include_url=False)[0]
    if first["type"] == "json_invalid":
        return Problem(path, "malformed JSON.", _REMEDY, line=number)
    field = ".".join(str(part) for part in first["loc"][1:]) or None
    return Problem(path, f"{first['msg'].rstrip('.')}.", _REMEDY, line=number, field=field)
