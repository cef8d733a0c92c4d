"""Where a command writes: results to stdout, progress and problems to stderr; tables, JSON and errors in one form."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click
import typer
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from distill_dagster.core import redaction
from distill_dagster.core.disk_errors import explain_disk_error
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.problem_groups import group_problems

# Without `emoji=False`, `golden.jsonl:100:` would be printed with the emoji of that name.
out, err = Console(emoji=False), Console(stderr=True, emoji=False)
NO_LIMIT = 1_000_000
"""Columns of a pipe or file."""
MIN_COLUMN = 8
"""The least width that a column of words needs to be read."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell's own commands."""


@dataclass
class OutputMode:
    """How the current command writes. `--json` and `--quiet` set it."""

    as_json: bool = False
    quiet: bool = False

    def reset(self) -> None:
        """Forget what the last command of this process was asked for."""
        self.as_json = self.quiet = False
        self.apply()

    def apply(self) -> None:
        """With either, nothing but JSON goes to stdout."""
        out.quiet = self.as_json or self.quiet


mode = OutputMode()


def print_json(value: Any) -> None:
    """Print the JSON object of a command on stdout, if `--json` asks for it. It is all that stdout gets."""
    if mode.as_json:
        click.echo(json.dumps(value))


def build_table(
    *columns: str,
    title: str | None = None,
    whole: Sequence[str] = (),
    numbers: Sequence[str] = (),
    edges: bool = True,
) -> Table:
    """A table that is cut nowhere.

    Args:
        columns: The headings.
        title: A line above the table.
        whole: Columns with names that a person types or searches for: they are not wrapped while others can be.
            Default: the first, if there are no numbers.
        numbers: Columns of numbers: they are aligned, and not wrapped while others can be.
        edges: Whether there is a frame around the table; without it the table is four columns narrower.
    """
    table = Table(title=title, title_justify="left", show_edge=edges, pad_edge=edges)
    for number, column in enumerate(columns):
        is_whole = column in whole or column in numbers or (number == 0 and not whole and not numbers)
        heading = column.replace(" ", "\n", 1) if column in numbers and out.is_terminal else column
        justify: JustifyMethod = "right" if column in numbers else "left"
        table.add_column(heading, no_wrap=is_whole, overflow="fold", justify=justify)
    return table


def print_table(table: Table) -> None:
    """Print a table: as wide as the terminal, or as wide as it needs in a pipe or file, where lines are searched."""
    if not out.is_terminal:
        Console(file=out.file, width=NO_LIMIT, emoji=False, quiet=out.quiet).print(table)
        return
    fixed = (max(out.measure(cell).maximum for cell in column.cells) for column in table.columns if column.no_wrap)
    others = sum(not column.no_wrap for column in table.columns)
    if sum(fixed) + MIN_COLUMN * others + 3 * len(table.columns) + 1 > out.width:
        for column in table.columns:
            column.no_wrap = False  # what does not fit would be cut
    out.print(table)


def print_problem(problem: Problem) -> None:
    """Print an error or a warning as one line on stderr."""
    colour = "red" if problem.severity == "error" else "yellow"
    err.print(f"[{colour}]{problem.severity}[/{colour}] {escape(str(problem))}", soft_wrap=True)


def print_error(message: str) -> None:
    """Print an error as one line on stderr, and as an object with `--json`."""
    message = redaction.redact(message)
    err.print(f"[red]error[/red] {escape(message)}", soft_wrap=True)
    print_json({"error": message})


@contextmanager
def show_problems(after_interrupt: str = "") -> Iterator[None]:
    """Print errors that a user can fix as messages, one per line and without a traceback, then exit.

    Args:
        after_interrupt: What is kept and how to go on, for Ctrl-C. What was interrupted may know better.
    """
    try:
        yield
    except InputError as error:
        for problem in group_problems(error.problems):
            print_problem(problem)
        print_json({"problems": [problem.to_json() for problem in error.problems]})
        raise typer.Exit(2) from None
    except DistillError as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    except KeyboardInterrupt as interrupt:
        text = escape(str(interrupt) or after_interrupt)
        err.print(f"[yellow]interrupted[/yellow] {text}", soft_wrap=not err.is_terminal)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:
        if reason := explain_disk_error(error):
            print_error(reason)
        elif clean := redaction.redact_traceback(error):
            err.print(escape(clean), soft_wrap=True)
        else:
            raise
        raise typer.Exit(1) from None
