"""The questions of `distill new`: at a terminal which column is what, elsewhere what an option must say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import click
import typer
from rich.markup import escape

from distill_dagster.cli.console import build_table, err, print_problem
from distill_dagster.config import LABEL_KINDS, TaskKind
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.problem_groups import group_problems
from distill_dagster.new_task.columns import ColumnGuess, Columns, ColumnSummary, guess_columns

SKIP_OPTION = "--skip-invalid"
_NONE = "-"
"""What a person types for no column."""


def require_sure_columns(
    source: Path, summaries: Sequence[ColumnSummary], guess: ColumnGuess, has_answers: bool
) -> None:
    """Refuse to guess where nobody can be asked.

    Raises:
        InputError: a column or the kind is not clear.
    """
    known = ", ".join(summary.name for summary in summaries)
    problems = []
    if "text" in guess.unsure:
        remedy = f"Name it with --text-field. The columns are: {known}."
        problems.append(Problem(source, "which column is the text is not clear.", remedy))
    if "answer" in guess.unsure and has_answers:
        candidates = f" Columns that may be: {', '.join(guess.answer_candidates)}." if guess.answer_candidates else ""
        remedy = "Name it with --label-field. If the file has none, name the labels with --label A --label B, or give "
        remedy += "--unlabelled for another --kind."
        problems.append(Problem(source, "no column is clearly the label or answer.", remedy + candidates))
    elif guess.kind is None:
        remedy = f"Name it with --kind: {', '.join(get_args(TaskKind))}."
        problems.append(Problem(source, "the kind of task is not clear.", remedy))
    if problems and (named := [summary.name for summary in summaries if summary.has_own_name]):
        message = f"{named[0]!r} is the name of a column and one of its values: the first line may be a row."
        problems.append(Problem(source, message, "If so, put a line with the names of the columns above it."))
    if problems:
        raise InputError(problems)


def ask_columns(
    summaries: Sequence[ColumnSummary],
    guess: ColumnGuess,
    given: Columns,
    kind: TaskKind | None,
    labels: list[str],
    one_slice: bool,
) -> ColumnGuess:
    """Ask for what the options do not name; what the columns suggest is the default. `labels` gets typed labels."""
    table = build_table("", "column", "values", "for example")
    for number, summary in enumerate(summaries, start=1):
        samples = escape(" | ".join(sample[:24] for sample in summary.samples))
        table.add_row(str(number), escape(summary.name), f"{summary.distinct} different", samples)
    err.print(table)
    err.print("[dim]Answer with a number or a name. Enter takes what is in brackets.[/dim]")
    columns = guess.columns
    if not given.text and not columns.messages:
        columns = replace(columns, text=_ask(summaries, "Which column is the text? Several: 2,3", columns.text))
    chosen = replace(given, text=columns.text, messages=columns.messages)
    found = guess_columns(summaries, chosen, kind or guess.kind)
    if kind is None:
        kinds = click.Choice(get_args(TaskKind))
        kind = typer.prompt("What kind of task is it?", found.kind or "classification", type=kinds, err=True)
        found = guess_columns(summaries, chosen, kind)
    columns = found.columns
    if not given.answer and not columns.messages:
        what = "label" if kind in LABEL_KINDS else "answer"
        columns = replace(columns, answer=_ask(summaries, f"Which column is the {what}? {_NONE}: none", columns.answer))
        if not columns.answer and kind in LABEL_KINDS and not labels:
            typed = typer.prompt("Which labels are there? Divide them by commas", err=True)
            labels += [name.strip() for name in typed.split(",") if name.strip()]
    if not given.slice and not one_slice and (columns.slice or found.slice_candidates):
        default = (columns.slice,) if columns.slice else ()
        question = f"Which column says where a row comes from? {_NONE}: one slice for all"
        columns = replace(columns, slice=next(iter(_ask(summaries, question, default)), None))
    return ColumnGuess(columns, kind)


def offer_to_skip(error: InputError) -> bool:
    """Show rows that cannot be used, and ask whether to leave them out."""
    if not all(problem.line or SKIP_OPTION in problem.remedy for problem in error.problems):
        return False
    for problem in group_problems(error.problems):
        print_problem(problem)
    return typer.confirm("Leave these rows out?", default=False, err=True)


def _ask(summaries: Sequence[ColumnSummary], question: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """Ask for columns until all that is typed is one."""
    names = [summary.name for summary in summaries]
    while True:
        typed = str(typer.prompt(question, ",".join(default) or _NONE, err=True)).strip()
        if typed == _NONE:
            return ()
        if typed == ",".join(default):
            return default
        if typed in names:
            return (typed,)
        parts = [part.strip() for part in typed.split(",")]
        found = [names[int(p) - 1] if p.isdecimal() and 0 < int(p) <= len(names) else p for p in parts]
        if all(name in names for name in found):
            return tuple(found)
        err.print(f"There is no column {escape(repr(typed))}.")
