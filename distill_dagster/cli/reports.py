"""`distill report` and `data-docs`: show results and build pages about them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from distill_dagster.cli.options import JsonOption, TaskArgument, choose_students, open_task_folder, show_problems
from distill_dagster.cli.output import print_report, show_progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks import TaskFolder


def report(
    task: TaskArgument = None,
    students: Annotated[list[str] | None, typer.Option("--student", help="Only this student. Can be repeated.")] = None,
) -> None:
    """Show the latest results and the paths of the reports. Runs nothing."""
    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        chosen = choose_students(folder, students) if students else list(folder.task.students)
        if not _print_reports(home, folder, chosen):
            raise DistillError(f"{folder.name} has no report yet. Run `distill run {folder.name}`.")


def _print_reports(home: Home, folder: TaskFolder, students: list[str]) -> bool:
    """Print every report that exists. Returns False if there is none."""
    shown = [print_report(home, folder, student) for student in students]
    return any(shown)


def data_docs(task: TaskArgument = None, as_json: JsonOption = False) -> None:
    """Build Great Expectations' Data Docs: every table of a task with its expectations. Runs nothing else."""
    from distill_dagster.operations.data_docs import build_data_docs

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        lake = Lake(home.lake, home.reports)
        tables = [(status.asset, status.partition) for status in TaskState(folder, lake).list_statuses()]
        target = home.data_docs / folder.name
        with show_progress():
            count = build_data_docs(lake, folder.name, tables, target)
        if not count:
            raise DistillError(f"{folder.name} has no table yet. Run `distill run {folder.name}`.")
    page = target / "index.html"
    typer.echo(json.dumps({"tables": count, "page": str(page)}) if as_json else f"{count} tables: {page}")
