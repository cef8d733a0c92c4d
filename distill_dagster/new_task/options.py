"""What a person chose for a new task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from distill_dagster.config import LABEL_KINDS, TASK_NAME_PATTERN, TaskKind
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.slugs import slugify
from distill_dagster.new_task.columns import Columns
from distill_dagster.new_task.split import Part
from distill_dagster.new_task.task_yaml import TeacherChoice


@dataclass(frozen=True)
class NewTaskOptions:
    """What a person chose for a new task.

    Attributes:
        label_map: by a spelling in the file, the label it means.
        labels: the labels of a table that has none yet.
        sizes: rows of parts, where not the default.
        slice: the slice of all rows, or of rows whose slice column is empty.
        schema_path: the JSON schema of task.yaml for editors, relative to the task folder.
        mask: replace secrets and personal data by their kind.
        skip_invalid: leave out rows that cannot be used, instead of refusing the file.
    """

    name: str
    kind: TaskKind
    columns: Columns
    label_map: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    sizes: Mapping[Part, int] = field(default_factory=dict)
    seed: int = 0
    slice: str | None = None
    description: str | None = None
    teacher: TeacherChoice = field(default_factory=TeacherChoice)
    student: str | None = None
    schema_path: str | None = None
    mask: bool = True
    skip_invalid: bool = False

    @property
    def has_labels(self) -> bool:
        """Whether an answer of this kind is one of the task's labels."""
        return self.kind in LABEL_KINDS


def check_new_name(tasks: Path, name: str) -> None:
    """Check that a task of this name can be made.

    Raises:
        InputError: the name is not allowed, or taken.
    """
    if not TASK_NAME_PATTERN.fullmatch(name):
        remedy = f"Use a name that matches {TASK_NAME_PATTERN.pattern}, such as {_suggest_name(name)!r}."
        raise InputError([Problem(tasks, f"{name!r} cannot be a task name.", remedy)])
    taken = [path.name for path in tasks.iterdir()] if tasks.is_dir() else []
    if twin := next((other for other in taken if other.casefold() == name), None):
        remedy = "Choose another name, or remove the folder. Nothing is overwritten."
        raise InputError([Problem(tasks / twin, "there is a task of this name.", remedy)])


def _suggest_name(name: str) -> str:
    plain = slugify(name).replace("-", "_")
    return (plain if TASK_NAME_PATTERN.fullmatch(plain) else f"task_{plain}".rstrip("_"))[:40]
