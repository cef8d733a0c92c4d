"""Open task folders. A folder that is opened here names every mistake in task.yaml, those in its filters too."""

from __future__ import annotations

from pathlib import Path

from distill_dagster.config import TASK_NAME_PATTERN
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.curation.filters import find_filter_problems
from distill_dagster.tasks import TASK_FILE, TaskFolder

_PATTERN = f"its name matches {TASK_NAME_PATTERN.pattern}"


def build_task_folder(path: Path, accepted: Path | None = None) -> TaskFolder:
    """The task folder at `path`, whether or not it exists; `accepted` is its folder of accepted prompts."""
    return TaskFolder(path, accepted, find_filter_problems)


def find_tasks(tasks: Path, accepted: Path) -> list[TaskFolder]:
    """All folders below `tasks` that contain a task.yaml, sorted by name.

    Args:
        accepted: the folder with the accepted prompts of all tasks, a folder for each.
    """
    if not tasks.is_dir():
        return []
    folders = [path for path in sorted(tasks.iterdir()) if (path / TASK_FILE).is_file() and not path.is_symlink()]
    return [build_task_folder(path, accepted / path.name) for path in folders]


def open_task(tasks: Path, name: str, accepted: Path) -> TaskFolder:
    """The folder of one task below `tasks`; `accepted` as in `find_tasks`.

    Raises:
        InputError: there is no such task, or `name` cannot be a task name.
    """
    known = [folder.name for folder in find_tasks(tasks, accepted)]
    if name in known and not TASK_NAME_PATTERN.fullmatch(name):
        message = f"{name!r} cannot be the name of a task."
        remedy = f"Rename the folder. A name has small letters, digits and _, and begins with a letter; {_PATTERN}."
        raise InputError([Problem(tasks / name, message, remedy)])
    if name not in known:
        remedy = f"Known tasks: {', '.join(known) or 'none'}. A task is a folder with a {TASK_FILE}; {_PATTERN}."
        raise InputError([Problem(tasks, f"there is no task {name!r}.", remedy)])
    return build_task_folder(tasks / name, accepted / name)
