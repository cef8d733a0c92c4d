"""`distill report`, `leaderboard` and `data-docs`: show results and build pages about them."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from distill_dagster.cli.console import out, print_json, show_problems
from distill_dagster.cli.options import (
    JsonOption,
    QuietOption,
    StudentOption,
    TaskArgument,
    choose_students,
    open_task_folder,
)
from distill_dagster.cli.output import print_leaderboard, print_report
from distill_dagster.cli.run_display import show_progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.open_lake import open_lake


def report(
    task: TaskArgument = None,
    students: StudentOption = None,
    open_pages: Annotated[bool, typer.Option("--open", help="Open each report in the web browser.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the latest results, what they mean, and the paths of the reports. Runs nothing."""
    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        chosen = choose_students(folder, students) if students else list(folder.task.students)
        open_lake(home).refresh_reports(folder.name, chosen)
        reports = {student: report for student in chosen if (report := print_report(home, folder, student))}
        if not reports:
            raise DistillError(f"{folder.name} has no report yet. Run `distill run {folder.name}`.")
        if open_pages:
            _open_in_browser([Path(report["report"]) for report in reports.values()])
        print_json({"task": folder.name, "reports": reports})


def leaderboard(task: TaskArgument = None, students: StudentOption = None, as_json: JsonOption = False) -> None:
    """Compare all students in one table, with a verdict for each: does distilling pay? Runs nothing.

    The table has the teacher, each student untrained, trained on human labels only and distilled, a linear probe, and
    the best other baseline: score with interval, latency, size, and cost of 1,000 answers. A page with the same table
    and plots is written next to the reports: leaderboard.html.
    """
    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        chosen = choose_students(folder, students) if students else list(folder.task.students)
        open_lake(home).refresh_reports(folder.name, chosen)
        figures = print_leaderboard(home, folder, chosen)
        if figures is None:
            raise DistillError(f"{folder.name} has no report yet. Run `distill run {folder.name}`.")
        print_json({"task": folder.name} | figures)


def _open_in_browser(pages: list[Path]) -> None:
    """Open files in the web browser: $BROWSER, or the system's.

    Raises:
        DistillError: There is no browser, or it did not start.
    """
    for page in pages:
        if not webbrowser.open(page.absolute().as_uri()):
            raise DistillError(
                f"no web browser could be started. Open {page} by hand, or set BROWSER to the command of a browser."
            )


def data_docs(task: TaskArgument = None, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Build Great Expectations' Data Docs: every table of a task with its expectations. Runs nothing else."""
    from distill_dagster.operations.data_docs import build_data_docs

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        lake = open_lake(home)
        tables = [(status.asset, status.partition) for status in TaskState(folder, lake).list_statuses()]
        target = home.data_docs / folder.name
        with show_progress():
            count = build_data_docs(lake, folder.name, tables, target)
        if not count:
            raise DistillError(f"{folder.name} has no table yet. Run `distill run {folder.name}`.")
    page = target / "index.html"
    out.print(f"{count_noun(count, 'table')}: {page}", soft_wrap=True, highlight=False)
    print_json({"tables": count, "page": str(page)})
