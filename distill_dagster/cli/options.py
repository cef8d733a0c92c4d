"""Options that commands share, finding the task that is meant, and completing names in a shell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from distill_dagster.cli.console import mode
from distill_dagster.config import BudgetSpec
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.open_task import find_tasks, open_task
from distill_dagster.tasks import TaskFolder


def _set_json(value: bool) -> bool:
    mode.as_json = value
    mode.apply()
    return value


def _set_quiet(value: bool) -> bool:
    mode.quiet = value
    mode.apply()
    return value


def _complete(list_names: Callable[[TaskFolder | None], list[str]]) -> Callable[[typer.Context, str], list[str]]:
    """A function for the shell that completes a name. A mistake in a file completes nothing, and prints nothing."""

    def complete(ctx: typer.Context, incomplete: str) -> list[str]:
        try:
            home = Home.from_env()
            known = {folder.name: folder for folder in find_tasks(home.tasks, home.accepted)}
            only = next(iter(known.values())) if len(known) == 1 else None
            # An option whose value is being typed ends the parsing: then the task is in the rest.
            words = [ctx.params.get("task"), *ctx.args]
            named = next((known[word] for word in words if word in known), only)
            return [name for name in list_names(named) if name.startswith(incomplete)]
        except DistillError:
            return []

    return complete


def _list_tasks(_: TaskFolder | None) -> list[str]:
    home = Home.from_env()
    return [folder.name for folder in find_tasks(home.tasks, home.accepted)]


_complete_task = _complete(_list_tasks)
_complete_slice = _complete(lambda folder: folder.list_slice_keys() if folder else [])
complete_student = _complete(lambda folder: list(folder.task.students) if folder else [])

TaskArgument = Annotated[
    str | None, typer.Argument(help="The task. Optional if there is only one.", autocompletion=_complete_task)
]
TaskName = Annotated[str, typer.Argument(help="The task.", autocompletion=_complete_task)]
SliceOption = Annotated[
    list[str] | None,
    typer.Option("--slice", help="Only this slice. Can be repeated.", autocompletion=_complete_slice),
]
StudentOption = Annotated[
    list[str] | None,
    typer.Option("--student", help="Only this student. Can be repeated.", autocompletion=complete_student),
]
BudgetUsd = Annotated[
    float | None,
    typer.Option(help="Cap in USD for this command. The lower of it and `budget.usd` in task.yaml applies."),
]
BudgetTokens = Annotated[
    int | None,
    typer.Option(help="Cap in tokens (prompts and answers). The lower of it and `budget.tokens` applies."),
]
LaunchOption = Annotated[
    bool | None,
    typer.Option(
        "--launch/--no-launch",
        help="Hand the runs to Dagster, which queues and starts them, and follow them. Default: `runs.launch` of "
        "deployment.yaml, else this process runs them.",
    ),
]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on stdout and nothing else.", callback=_set_json)
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print problems only, no progress and no results.", callback=_set_quiet)
]


def open_task_folder(home: Home, task: str | None) -> TaskFolder:
    """Open the named task, or the only one.

    Raises:
        InputError: There is no such task, or several exist and none is named.
    """
    if task is not None:
        return open_task(home.tasks, task, home.accepted)
    known = find_tasks(home.tasks, home.accepted)
    if len(known) != 1:
        names = ", ".join(folder.name for folder in known)
        remedy = f"Name one of: {names}." if known else "Add a folder with a task.yaml."
        problem = Problem(home.tasks, "no task is named." if known else "there is no task.", remedy)
        raise InputError([problem])
    return known[0]


def choose_students(folder: TaskFolder, chosen: list[str] | None) -> list[str]:
    """Return the named students, or the task's default student.

    Raises:
        InputError: There is no such student.
    """
    known = list(folder.task.students)
    for name in chosen or []:
        if name not in known:
            problem = Problem(
                folder.path / "task.yaml", f"there is no student {name!r}.", f"Known: {', '.join(known)}."
            )
            raise InputError([problem])
    return chosen or [folder.task.chosen_student]


def build_cap(usd: float | None, tokens: int | None) -> BudgetSpec:
    """Build the cap of one command from its options.

    Raises:
        DistillError: A value is negative or not a number.
    """
    for option, value in (("--budget-usd", usd), ("--budget-tokens", tokens)):
        if value is not None and not value >= 0:  # nan too
            raise DistillError(f"{option} is {value}. Give 0 or more.")
    return BudgetSpec(usd=usd, tokens=tokens)
