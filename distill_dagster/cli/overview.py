"""`distill tasks`, `check` and `status`: list tasks, validate one, and show what is up to date."""

from __future__ import annotations

import json

import typer
from rich.markup import escape
from rich.table import Table

from distill_dagster.cli.options import JsonOption, TaskArgument, open_task_folder, out, print_problem, show_problems
from distill_dagster.core.errors import InputError
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.open_task import find_tasks
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tables.lake import Lake


def tasks() -> None:
    """List the task folders."""
    home = Home.from_env()
    table = Table("task", "kind", "labels", "slices", "students", "teacher")
    for folder in find_tasks(home.tasks, home.accepted):
        try:
            task = folder.task
            students = ", ".join(task.students)
            numbers = str(len(task.labels)), str(len(folder.list_slice_keys()))
            teachers = ", ".join(spec.model for spec in task.teacher_specs)
            table.add_row(escape(folder.name), task.kind, *numbers, escape(students), escape(teachers))
        except InputError as error:
            table.add_row(escape(folder.name), "[red]malformed[/red]", "", "", "", f"{len(error.problems)} problems")
    out.print(table)


def check(task: TaskArgument = None) -> None:
    """Validate a task folder without running anything. Exits with code 2 if there is an error."""
    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        problems = check_task_folder(folder)
        for problem in problems:
            print_problem(problem)
        errors = sum(p.severity == "error" for p in problems)
        out.print(f"{folder.name}: {errors} errors, {len(problems) - errors} warnings")
        if errors:
            raise typer.Exit(2)


def status(task: TaskArgument = None, as_json: JsonOption = False) -> None:
    """Show which artifacts are fresh, stale or missing, and why."""
    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        statuses = TaskState(folder, Lake(home.lake, home.reports)).list_statuses()
        table = Table("artifact", "state", "rows", "why")
        colours = {"fresh": "green", "stale": "yellow", "missing": "red", "waiting": "dim", "malformed": "red"}
        for s in statuses:
            why = "; ".join(s.why[:3]) + (f"; and {len(s.why) - 3} more" if len(s.why) > 3 else "")
            if s.record and s.record.extra.get("blocked"):
                why = f"did not pass {', '.join(s.record.extra['blocked'])}. {why}"
            if s.record and (missing := s.record.extra.get("below_target")):
                why = f"{missing} prompts below its target; `distill imagine --slice {s.partition}` asks again. {why}"
            rows = str(s.record.rows) if s.record else ""
            table.add_row(escape(s.name), f"[{colours[s.state]}]{s.state}[/]", rows, escape(why))
        out.print(table)
        counts = {state: sum(s.state == state for s in statuses) for state in colours}
        out.print(f"{folder.name}: " + ", ".join(f"{n} {state}" for state, n in counts.items()))
        if as_json:
            artifacts = [{"name": s.name, "state": s.state, "why": list(s.why)} for s in statuses]
            print(json.dumps({"task": folder.name, "counts": counts, "artifacts": artifacts}))
