"""Copy a task folder under another name, with one of its teachers or with other settings (`distill copy`)."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.files import write_atomically
from distill_dagster.intake.inbox import lock_inbox
from distill_dagster.intake.recordings import RECORDED_FOLDER
from distill_dagster.new_task.options import check_new_name
from distill_dagster.new_task.write import put_in_place
from distill_dagster.new_task.yaml_edit import keep_teacher, set_field
from distill_dagster.pipeline.open_task import build_task_folder
from distill_dagster.tasks import TASK_FILE, TaskFolder
from distill_dagster.tasks.imagined import IMAGINED_FOLDER
from distill_dagster.tasks.reading import read_task
from distill_dagster.tasks.yaml_files import require_value


@dataclass(frozen=True)
class CopyChanges:
    """How a copy differs from its task.

    Attributes:
        teacher: the name of the only teacher that is kept.
        fields: new values of fields of task.yaml by their dotted path, such as `teacher.few_shot.draws`.
        with_imagined: whether imagined prompts are copied.
    """

    teacher: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    with_imagined: bool = True


def copy_task(folder: TaskFolder, tasks: Path, name: str, changes: CopyChanges, inbox: Path) -> list[Problem]:
    """Write a copy of a task below `tasks`, and return what `distill check` says about it.

    Prompts that came through the inbox or an import are copied too. Hidden files are not, and recordings only if a
    teacher of the copy is a replay teacher. What was made from the task is not copied. Answers in the store are found
    by their request, so the copy does not ask for them again.

    Args:
        inbox: the task's inbox, whose lock is held while accepted prompts are copied.

    Raises:
        InputError: the name is taken, or task.yaml would be malformed. Nothing was written.
        DistillError: a change names a teacher or field that does not exist, or the folder cannot be written.
    """
    check_new_name(tasks, name)
    text = _edit_settings(folder, changes)
    accepted = folder.accepted.with_name(name) if folder.accepted else None
    if accepted is not None and accepted.exists():
        remedy = "Choose another name, or remove the folder."
        raise InputError([Problem(accepted, "there are accepted prompts of an earlier task of this name.", remedy)])

    def fill(staged: Path) -> None:
        _copy_files(folder.path, staged, changes)
        write_atomically(staged / TASK_FILE, text)
        if not any(spec.is_replay for spec in build_task_folder(staged).task.teacher_specs):
            shutil.rmtree(staged / RECORDED_FOLDER, ignore_errors=True)

    try:
        if folder.accepted is not None and accepted is not None and folder.accepted.is_dir():
            with lock_inbox(inbox):
                _copy_files(folder.accepted, accepted, changes)
        return put_in_place(fill, tasks, name, accepted)
    except BaseException:
        if accepted is not None:
            shutil.rmtree(accepted, ignore_errors=True)
        raise


def _edit_settings(folder: TaskFolder, changes: CopyChanges) -> str:
    path = folder.path / TASK_FILE
    require_value(read_task(folder.path))
    text = path.read_text(encoding="utf-8")
    try:
        if changes.teacher is not None:
            text = keep_teacher(text, changes.teacher)
        for name, value in changes.fields.items():
            text = set_field(text, name.split("."), value)
    except DistillError as error:
        raise DistillError(f"{path}: {error}") from error
    return text


def _copy_files(source: Path, target: Path, changes: CopyChanges) -> None:
    """Copy a folder. Symbolic links stay links: what reads them refuses them with their name."""

    def leave_out(place: str, names: list[str]) -> set[str]:
        left = {name for name in names if name.startswith(".")}
        return left | ({IMAGINED_FOLDER} if Path(place) == source and not changes.with_imagined else set())

    shutil.copytree(source, target, symlinks=True, ignore=leave_out)
