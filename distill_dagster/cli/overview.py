"""`distill tasks`, `check` and `status`: list tasks, validate one, and show what is up to date."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from distill_dagster.cli.console import build_table, out, print_json, print_problem, print_table, show_problems
from distill_dagster.cli.options import JsonOption, QuietOption, TaskArgument, open_task_folder
from distill_dagster.core.errors import InputError
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.paths import Home
from distill_dagster.core.problem_groups import group_problems
from distill_dagster.pipeline.freshness import ArtifactStatus, TaskState
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.pipeline.open_task import find_tasks
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.pipeline.teacher_check import find_connection_problems, find_environment_problems
from distill_dagster.tasks.reading import TASK_FILE, read_task

if TYPE_CHECKING:
    from distill_dagster.pipeline.release_status import ReleaseStatus


COLOURS = {"fresh": "green", "stale": "yellow", "missing": "red", "waiting": "dim", "malformed": "red"}
"""The colour of each state in the table of `distill status`."""
MAX_ALIKE = 20
"""More partitions of an asset that are alike share a line on a terminal."""
ALL = "…"


def tasks(as_json: JsonOption = False) -> None:
    """List the task folders."""
    home = Home.from_env()
    with show_problems():
        table = build_table("task", "kind", "labels", "slices", "students", "teacher")
        listed: list[dict[str, Any]] = []
        for folder in find_tasks(home.tasks, home.accepted):
            try:
                task = folder.task
                students, teachers = list(task.students), [spec.model for spec in task.teacher_specs]
                slices = folder.list_slice_keys()
            except InputError as error:
                problems = [problem.to_json() for problem in error.problems]
                listed.append({"task": folder.name, "problems": problems})
                found = count_noun(len(problems), "problem")
                table.add_row(escape(folder.name), "[red]malformed[/red]", "", "", "", f"{found}; see `distill check`")
                continue
            listed.append(
                {
                    "task": folder.name,
                    "kind": task.kind,
                    "labels": task.label_names,
                    "slices": slices,
                    "students": students,
                    "teachers": teachers,
                }
            )
            numbers = str(len(task.labels)), str(len(slices))
            names = escape(", ".join(students)), escape(", ".join(teachers))
            table.add_row(escape(folder.name), task.kind, *numbers, *names)
        if listed:
            print_table(table)
        else:
            out.print(f"No task yet in {escape(str(home.tasks))}. `distill new TASK --from FILE` makes one.")
        print_json({"tasks": listed})


def check(
    task: TaskArgument = None,
    online: Annotated[
        bool, typer.Option("--online", help="Also look whether each teacher can be reached. Asks no model.")
    ] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Validate a task folder, and what it needs on this machine, without running anything.

    Exits with code 2 if there is an error.
    """
    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        problems = check_task_folder(folder)
        if (spec := read_task(folder.path).value) is not None:
            path = folder.path / TASK_FILE
            problems += find_environment_problems(path, spec)
            problems += find_connection_problems(path, spec) if online else []
        for problem in group_problems(problems):
            print_problem(problem)
        errors = sum(p.severity == "error" for p in problems)
        warnings = count_noun(len(problems) - errors, "warning")
        out.print(f"{folder.name}: {count_noun(errors, 'error')}, {warnings}")
        print_json({"task": folder.name, "errors": errors, "problems": [problem.to_json() for problem in problems]})
        if errors:
            raise typer.Exit(2)


def status(task: TaskArgument = None, as_json: JsonOption = False) -> None:
    """Show which artifacts are fresh, stale or missing, and why."""
    from distill_dagster.pipeline.release_status import find_release_status
    from distill_dagster.pipeline.shared_releases import pull_releases
    from distill_dagster.pipeline.teacher_pauses import find_task_pauses  # loads a database
    from distill_dagster.release.registry import Registry

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        state = TaskState(folder, open_lake(home))
        students = state.list_used_students()
        statuses = state.list_statuses(students)
        if not out.quiet:
            _print_statuses(statuses)
        counts = {state: sum(s.state == state for s in statuses) for state in COLOURS}
        out.print(f"{folder.name}: " + ", ".join(f"{n} {name}" for name, n in counts.items()))
        pauses = find_task_pauses(home, folder)
        for pause in pauses:
            out.print(f"[yellow]{escape(pause)}[/yellow]", soft_wrap=True)
        untrained = [name for name in state.students if name not in students]
        if untrained:
            remedy = f"`distill run {folder.name} --student {untrained[0]}` does it"
            out.print(
                f"Not trained, since nobody asked for it: {escape(', '.join(untrained))}; {escape(remedy)}.",
                soft_wrap=True,
            )
        registry = Registry(home.releases)
        pull_releases(state.lake, registry, folder.name)
        released = find_release_status(state, registry)
        if released is not None:
            out.print(_describe_release(released, folder.name), soft_wrap=True)
        artifacts = [{"name": s.name, "state": s.state, "why": list(s.why)} for s in statuses]
        listed: dict[str, Any] = {"artifacts": artifacts, "untrained_students": untrained, "pauses": pauses}
        listed["release"] = released.to_json() if released is not None else None
        print_json({"task": folder.name, "counts": counts} | listed)


def _print_statuses(statuses: Sequence[ArtifactStatus]) -> None:
    """Print a table with a line per artifact. On a terminal, many partitions that are alike share a line."""
    alike: dict[tuple[str, ...], list[ArtifactStatus]] = {}
    for s in statuses:
        own = (s.partition or "",) if not out.is_terminal else ()
        alike.setdefault((s.asset, s.state, _explain_status(s, ALL), *own), []).append(s)
    table = build_table("artifact", "state", "rows", "why", whole=("artifact", "state"), numbers=("rows",))
    for group in alike.values():
        is_many = len(group) > MAX_ALIKE
        for s in group[:1] if is_many else group:
            name = f"{s.asset}[{len(group):,} partitions]" if is_many else s.name
            made = [one.record.rows for one in (group if is_many else [s]) if one.record]
            rows = f"{sum(made):,}" if made else ""
            why = _explain_status(s, ALL if is_many else s.partition)
            table.add_row(escape(name), f"[{COLOURS[s.state]}]{s.state}[/]", rows, escape(why))
    print_table(table)


def _explain_status(status: ArtifactStatus, partition: str | None) -> str:
    """Why an artifact is in its state, with `partition` in place of its own."""
    why = "; ".join(status.why[:3]) + (f"; and {len(status.why) - 3} more" if len(status.why) > 3 else "")
    extra = status.record.extra if status.record else {}
    if extra.get("blocked"):
        why = f"did not pass {', '.join(extra['blocked'])}. {why}"
    if missing := extra.get("below_target"):
        prompts = count_noun(missing, "prompt")
        why = f"{prompts} below its target; `distill imagine --slice {status.partition}` asks again. {why}"
    return why.replace(f"[{status.partition}]", f"[{partition}]") if status.partition else why


def _describe_release(released: ReleaseStatus, task: str) -> str:
    """One line about the current release."""
    name = f"Released: {released.number} ({escape(released.student)})"
    if released.is_current:
        return f"{name}, as its report says."
    why = "; ".join(released.why)
    remedy = f"`distill release {task} --student {released.student}` releases again"
    return f"[yellow]{name}, older than what is there: {escape(why)}; {escape(remedy)}.[/yellow]"
