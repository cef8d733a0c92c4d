"""Write a planned task folder: all of it, or nothing."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.files import sync_folder, write_atomically
from distill_dagster.new_task.options import check_new_name
from distill_dagster.new_task.plan import TaskPlan
from distill_dagster.pipeline.open_task import build_task_folder
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tasks import TASK_FILE


def write_task(plan: TaskPlan, tasks: Path, accepted: Path) -> list[Problem]:
    """Write a new task folder below `tasks`, and return what `distill check` says about it.

    Args:
        accepted: the folder with the accepted prompts of all tasks.

    Raises:
        InputError: the name is taken, or task.yaml, a row or a slice is malformed. Nothing was written.
        DistillError: the folder cannot be written.
    """

    def fill(staged: Path) -> None:
        for name, content in plan.files.items():
            write_atomically(staged / name, content)

    target = tasks / plan.name
    return put_in_place(
        fill, tasks, plan.name, accepted / plan.name, lambda problem: _is_malformed(problem, plan, target)
    )


def put_in_place(
    fill: Callable[[Path], None],
    tasks: Path,
    name: str,
    accepted: Path | None,
    is_refused: Callable[[Problem], bool] = lambda _: False,
) -> list[Problem]:
    """Make a task folder below `tasks`, and return what `distill check` says about it.

    The folder is made under a hidden name, checked, and renamed. So no other process sees a part of it.

    Args:
        fill: writes the files into the folder that it gets; the folder does not exist yet.
        accepted: the folder with the accepted prompts of the task.
        is_refused: whether an error is a reason to write nothing.

    Raises:
        InputError: the name is taken, or an error is refused. Nothing was written.
        DistillError: the folder cannot be written.
    """
    check_new_name(tasks, name)
    target = tasks / name
    hidden = tasks / f".new-{name}-{uuid.uuid4().hex[:8]}"
    staged = hidden / name
    try:
        fill(staged)
        problems = _move_problems(check_task_folder(build_task_folder(staged, accepted)), staged, target)
        if wrong := [problem for problem in problems if problem.severity == "error" and is_refused(problem)]:
            raise InputError(wrong)
        staged.rename(target)
        sync_folder(tasks)
    except InputError as error:
        raise InputError(_move_problems(error.problems, staged, target)) from error
    except (OSError, shutil.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DistillError(f"{target} could not be written: {reason}.") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
    return problems


def _move_problems(problems: Sequence[Problem], staged: Path, target: Path) -> list[Problem]:
    """The problems with the paths that the files will have."""
    moved = []
    for problem in problems:
        is_inside = problem.file.is_relative_to(staged)
        moved.append(replace(problem, file=target / problem.file.relative_to(staged)) if is_inside else problem)
    return moved


def _is_malformed(problem: Problem, plan: TaskPlan, target: Path) -> bool:
    """Whether a problem is one of the written rows and slices, not a teacher's terms or a label still to write."""
    is_written = problem.file.is_relative_to(target) and str(problem.file.relative_to(target)) in plan.files
    return is_written and problem.file.name != TASK_FILE
