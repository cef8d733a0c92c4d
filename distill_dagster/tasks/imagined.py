"""Read the prompts that a model imagined: one append-only JSONL file for each slice, and those shipped with a task.

`teacher.imagine.log` appends to these files. The prompts of a round are followed by a line that ends the round. Readers
take the prompts of ended rounds only, so a killed process leaves no partial round, and the next append removes its
lines. A line `fresh` begins a new generation: the prompts before it are retired, and stay in the file.

A task folder may have files of the same form in `imagined/`. They are files of the user: all their prompts count, with
or without a line that ends a round, and they belong to the data version of their slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from distill_dagster.core.errors import InputError, Problem
from distill_dagster.tasks.append_only import read_lines

IMAGINED_FOLDER = "imagined"
"""A folder in a task's folder of accepted prompts, and in the task folder."""
_REMEDY = "Fix or remove this line. You may remove lines with prompts at any time."
_SHIPPED_REMEDY = "Fix or remove this line; docs/imagine.md shows its fields."


class ImagineLine(BaseModel):
    """One line of a file of imagined prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImaginedPrompt(ImagineLine):
    """One prompt that was kept, with how and by which teacher it was written."""

    kind: Literal["prompt"] = "prompt"
    text: Annotated[str, Field(min_length=1, pattern=r"\S")]
    method: str
    axes: dict[str, str] = {}
    parent_prompt_id: str | None = None
    target_label: str | None = None
    teacher: str
    template_version: str = ""
    request_key: str = ""
    imagined_at: str = ""


class ImagineRound(ImagineLine):
    """The end of a round: how many requests it sent, how many failed, and how many prompts were left out."""

    kind: Literal["round"] = "round"
    requests: Annotated[int, Field(ge=0)]
    failed: Annotated[int, Field(ge=0)] = 0
    duplicates: Annotated[int, Field(ge=0)] = 0
    near_duplicates: Annotated[int, Field(ge=0)] = 0
    ended_at: str


class GenerationStart(ImagineLine):
    """The start of a new generation: everything is asked for again."""

    kind: Literal["fresh"] = "fresh"
    asked_at: str


_LINE_ADAPTER: TypeAdapter[ImaginedPrompt | ImagineRound | GenerationStart] = TypeAdapter(
    Annotated[ImaginedPrompt | ImagineRound | GenerationStart, Field(discriminator="kind")]
)


@dataclass(frozen=True)
class ImagineHistory:
    """The prompts imagined for one slice. `prompts` and `rounds` are those of the current generation."""

    generation: int = 0
    prompts: tuple[ImaginedPrompt, ...] = ()
    rounds: tuple[ImagineRound, ...] = ()
    retired: int = 0

    @property
    def requests(self) -> int:
        """The number of the next request of this generation."""
        return sum(ended.requests for ended in self.rounds)


def get_imagined_path(folder: Path, key: str) -> Path:
    """The file of one slice; `folder` is the task's folder of accepted prompts, or the task folder."""
    return folder / IMAGINED_FOLDER / f"{key}.jsonl"


def read_imagined(path: Path) -> ImagineHistory:
    """The prompts of one file. A missing file has none.

    Raises:
        InputError: lines are broken (all of them are named), or the file cannot be read.
    """
    return read_imagined_until(path)[0]


def read_imagined_until(path: Path) -> tuple[ImagineHistory, int]:
    """As `read_imagined`, and the byte offset where the last ended round ends."""
    generation = retired = end = 0
    prompts: list[ImaginedPrompt] = []
    unfinished: list[ImaginedPrompt] = []
    rounds: list[ImagineRound] = []
    for line, line_end in read_lines(path, _LINE_ADAPTER, _REMEDY, is_union=True):
        if isinstance(line, ImaginedPrompt):
            unfinished.append(line)
            continue
        if isinstance(line, GenerationStart):
            generation, retired = generation + 1, retired + len(prompts)
            prompts, rounds = [], []
        else:
            prompts, rounds = prompts + unfinished, [*rounds, line]
        unfinished, end = [], line_end
    return ImagineHistory(generation, tuple(prompts), tuple(rounds), retired), end


def read_shipped(path: Path) -> list[tuple[ImaginedPrompt, int]]:
    """The prompts of a file in the task folder, those of its last generation, each with its line.

    A missing file has none.

    Raises:
        InputError: lines are broken (all of them are named), or the file cannot be read.
    """
    prompts: list[tuple[ImaginedPrompt, int]] = []
    lines = read_lines(path, _LINE_ADAPTER, _SHIPPED_REMEDY, is_union=True, may_be_cut=False)
    content = path.read_bytes() if lines else b""
    for line, end in lines:
        if isinstance(line, ImaginedPrompt):
            prompts.append((line, content.count(b"\n", 0, end - 1) + 1))
        elif isinstance(line, GenerationStart):
            prompts.clear()
    return prompts


def list_shipped_files(folder: Path) -> list[Path]:
    """The files of imagined prompts in a task folder, sorted."""
    return sorted(file for file in (folder / IMAGINED_FOLDER).glob("*.jsonl") if not file.name.startswith("."))


def find_imagined_problems(accepted: Path | None) -> Iterator[Problem]:
    """The problems in all of a task's files of imagined prompts."""
    files = sorted((accepted / IMAGINED_FOLDER).glob("*.jsonl")) if accepted is not None else []
    for path in (file for file in files if not file.name.startswith(".")):
        try:
            read_imagined(path)
        except InputError as error:
            yield from error.problems
