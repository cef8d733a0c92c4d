"""`distill report` and `data-docs`: show results and build pages about them."""

from __future__ import annotations

from distill_dagster.cli.console import out, print_json, show_problems
from distill_dagster.cli.options import (
    JsonOption,
    QuietOption,
    StudentOption,
    TaskArgument,
    choose_students,
    open_task_folder,
)
from distill_dagster.cli.output import print_report
from distill_dagster.cli.run_display import show_progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.tables.lake import Lake


def report(
    task: TaskArgument = None,
    students: StudentOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the latest results and the paths of the reports. Runs nothing."""
    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        chosen = choose_students(folder, students) if students else list(folder.task.students)
        reports = {student: report for student in chosen if (report := print_report(home, folder, student))}
        if not reports:
            raise DistillError(f"{folder.name} has no report yet. Run `distill run {folder.name}`.")
        print_json({"task": folder.name, "reports": reports})


def data_docs(task: TaskArgument = None, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
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
    out.print(f"{count_noun(count, 'table')}: {page}", soft_wrap=True, highlight=False)
    print_json({"tables": count, "page": str(page)})
