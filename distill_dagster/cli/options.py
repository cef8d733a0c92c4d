"""What commands share: options, the task that is meant, and problems as messages."""

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
from distill_dagster.tasks import TaskFolder, find_tasks, open_task

out, err = Console(), Console(stderr=True)

TaskArgument = Annotated[str | None, typer.Argument(help="The task; may be left out where there is only one.")]
BudgetUsd = Annotated[
    float | None,
    typer.Option(help="USD that this command may spend on teachers; `budget.usd` in task.yaml counts where lower."),
]
BudgetTokens = Annotated[
    int | None,
    typer.Option(help="The same in tokens of prompts and answers, beside `budget.tokens`."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object last.")]


@contextmanager
def show_problems() -> Iterator[None]:
    """Problems of the user are shown as messages, one a line, without a traceback."""
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
    """One line on stderr: an error or a warning."""
    colour = "red" if problem.severity == "error" else "yellow"
    err.print(f"[{colour}]{problem.severity}[/{colour}] {escape(str(problem))}", soft_wrap=True)


def open_task_folder(home: Home, task: str | None) -> TaskFolder:
    """The task that is named, or the only one.

    Raises:
        InputError: there is no such task, or none is named and there are several.
    """
    if task is not None:
        return open_task(home.tasks, task, home.accepted)
    known = find_tasks(home.tasks, home.accepted)
    if len(known) != 1:
        names = ", ".join(t.name for t in known) or "none"
        problem = Problem(home.tasks, "name a task.", f"Known tasks: {names}.")
        raise InputError([problem])
    return known[0]


def choose_students(folder: TaskFolder, chosen: list[str] | None) -> list[str]:
    """The students that are named, or the task's chosen one.

    Raises:
        InputError: there is no such student.
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
    """What a command may spend on teachers, besides what task.yaml allows."""
    for option, value in (("--budget-usd", usd), ("--budget-tokens", tokens)):
        if value is not None and not value >= 0:  # nan too
            raise DistillError(f"{option} is {value}; give what this command may spend, 0 or more.")
    return BudgetSpec(usd=usd, tokens=tokens)
