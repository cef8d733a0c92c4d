"""Options that commands share, finding the task that is meant, and printing problems as messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from distill_dagster.config import BudgetSpec
from distill_dagster.core import redaction
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.open_task import find_tasks, open_task
from distill_dagster.tasks import TaskFolder

out, err = Console(), Console(stderr=True)

TaskArgument = Annotated[str | None, typer.Argument(help="The task. Optional if there is only one.")]
BudgetUsd = Annotated[
    float | None,
    typer.Option(help="Cap in USD for this command. The lower of it and `budget.usd` in task.yaml applies."),
]
BudgetTokens = Annotated[
    int | None,
    typer.Option(help="Cap in tokens (prompts and answers). The lower of it and `budget.tokens` applies."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Also print one JSON object, as the last line.")]


@contextmanager
def show_problems() -> Iterator[None]:
    """Print errors that a user can fix as messages, one per line and without a traceback, then exit."""
    try:
        yield
    except InputError as error:
        for problem in error.problems:
            print_problem(problem)
        raise typer.Exit(2) from None
    except DistillError as error:
        err.print(f"[red]error[/red] {escape(redaction.redact(str(error)))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except Exception as error:
        if clean := redaction.redact_traceback(error):
            err.print(escape(clean), soft_wrap=True)
            raise typer.Exit(1) from None
        raise


def print_problem(problem: Problem) -> None:
    """Print an error or a warning as one line on stderr."""
    colour = "red" if problem.severity == "error" else "yellow"
    err.print(f"[{colour}]{problem.severity}[/{colour}] {escape(str(problem))}", soft_wrap=True)


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
