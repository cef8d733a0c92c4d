"""`distill release`, `releases` and `export`: deploy a student, choose among releases, take the dataset elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.markup import escape

from distill_dagster.cli.console import build_table, out, print_json, print_table, show_problems
from distill_dagster.cli.options import (
    JsonOption,
    QuietOption,
    TaskArgument,
    choose_students,
    complete_student,
    open_task_folder,
)
from distill_dagster.cli.output import print_failures, print_next
from distill_dagster.cli.run_display import show_progress
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun, format_bytes, format_seconds
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.pipeline.shared_releases import complete_release, pull_releases, push_current_number
from distill_dagster.release.dataset_formats import DatasetFormat, read_dataset_format
from distill_dagster.tables.schemas import DATASET
from distill_dagster.tasks import TaskFolder

if TYPE_CHECKING:
    from distill_dagster.release.registry import Release

NEEDED = ("student_adapter", "predictions", "eval_report")
"""What must be fresh before a student is released."""
OneStudent = Annotated[
    str | None,
    typer.Option(help="The student; by default the task's.", autocompletion=complete_student),
]
KEPT = "Nothing was released. What is there stays as it was."


def release(
    task: TaskArgument = None,
    student: OneStudent = None,
    push: Annotated[
        str | None,
        typer.Option(help="Also upload the release to this repository of the Hugging Face Hub, `org/name`."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Create the repository as a public one.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Release a student: check it, write it in formats that other programs load, and compare each with the adapter.

    A release is a numbered folder that never changes. It becomes the current one, which `distill serve` answers from.
    """
    home = Home.from_env()
    started = time.perf_counter()
    with show_problems(KEPT):
        from distill_dagster.release.hub import check_repository, push_release
        from distill_dagster.release.registry import Registry

        folder = open_task_folder(home, task)
        [name] = choose_students(folder, [student] if student else None)
        if push is not None:
            check_repository(push)
        elif public:
            raise DistillError("--public is about the repository of --push, which is missing.")
        state = TaskState(folder, open_lake(home))
        _require_report(state, name)
        registry = Registry(home.releases)
        pull_releases(state.lake, registry, folder.name)
        made = _find_released(state, registry, name)
        if made is None:
            made = _make_release(home, folder, registry, name)
            _print_release(made, time.perf_counter() - started)
        else:
            out.print(f"Nothing changed since release {made.number} of {escape(name)}: {made.path}", soft_wrap=True)
        address = None
        if push is not None:
            with show_progress():
                address = push_release(made, push, private=not public)
            out.print(f"Pushed to {escape(address)}", soft_wrap=True)
        if (current := registry.read_current_number(folder.name)) == made.number:
            print_next(f"distill serve {folder.name}", "answers from it.")
        else:
            print_next(f"distill releases {folder.name} --use {made.number}", f"makes it current, not {current}.")
        print_json(_describe(made, registry) | {"pushed_to": address})


def _require_report(state: TaskState, student: str) -> None:
    """Refuse to release what was not evaluated as it is now.

    Raises:
        DistillError: the student, its predictions or its report are missing or stale.
    """
    for asset in NEEDED:
        status = state.get_status(asset, student)
        if status.state != "fresh":
            why = "; ".join(status.why[:3])
            raise DistillError(
                f"{status.name} is {status.state} ({why}), and only what was evaluated is released. Run `distill run "
                f"{state.folder.name} --student {student}` first."
            )


def _find_released(state: TaskState, registry: Any, student: str) -> Release | None:
    """The release that was made from what is there now, if it still exists and is whole."""
    from distill_dagster.release.registry import find_damage

    status = state.get_status("release", student)
    if status.state != "fresh" or status.record is None:
        return None
    number = status.record.extra["number"]
    if number not in registry.list_numbers(state.folder.name):
        return None
    found: Release = registry.read(state.folder.name, number)
    with show_progress():
        complete_release(state.lake, registry, state.folder.name, number)
        damage = find_damage(found)
    if damage:
        out.print(f"Release {number} is damaged, so it is made again: {escape('; '.join(damage[:5]))}.", soft_wrap=True)
    return None if damage else found


def _make_release(home: Home, folder: TaskFolder, registry: Any, student: str) -> Release:
    from distill_dagster import orchestration
    from distill_dagster.definitions import build_definitions

    with show_progress() as display, orchestration.open_instance(home) as instance:
        orchestration.sync_task(folder, instance, [student])
        runner = orchestration.Runner(home, folder, instance, build_definitions(home))
        summary = runner.release(student, display.notify)
    if summary.failed or summary.blocked or summary.pending:
        print_failures(summary)
        out.print(KEPT)
        print_json(summary.to_json())
        raise typer.Exit(1)
    record = runner.lake.read_record(folder.name, "release", student)
    assert record is not None
    return registry.read(folder.name, record.extra["number"])


def _print_release(made: Release, seconds: float) -> None:
    from distill_dagster.release.gate import iter_gate_lines

    table = build_table("export", "path", "size", title=f"{made.task}, release {made.number}: {made.student}")
    for export in made.exports:
        table.add_row(export.name, escape(export.path), format_bytes(export.bytes))
    print_table(table)
    for check in made.manifest["gate"]:
        details = {name: value for name, value in check.items() if name not in ("check", "passed")}
        for line in iter_gate_lines([CheckResult(check["check"], check["passed"], details=details)]):
            mark = "[dim]-[/dim]" if "not_checked" in details else "[green]✓[/green]"
            out.print(f"{mark} {escape(line)}", soft_wrap=not out.is_terminal, highlight=False)
    for one in made.left_out:
        out.print(f"[yellow]left out[/yellow] {one.name}: {escape(one.reason)}", soft_wrap=not out.is_terminal)
    for note in made.manifest["notes"]:
        out.print(escape(note), soft_wrap=not out.is_terminal, highlight=False)
    files = count_noun(len(made.manifest["files"]), "file")
    out.print(f"{made.path}: {files}, {format_bytes(made.bytes)}, in {format_seconds(seconds)}", soft_wrap=True)


def releases(
    task: TaskArgument = None,
    use: Annotated[int | None, typer.Option(help="Make this release the current one.")] = None,
    compare: Annotated[
        tuple[int, int] | None, typer.Option(help="Show what differs between two releases, for example `3 5`.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the releases of a task, compare two of them, or go back to an earlier one."""
    home = Home.from_env()
    with show_problems():
        from distill_dagster.release.compare import compare_releases
        from distill_dagster.release.registry import Registry

        folder = open_task_folder(home, task)
        registry, lake = Registry(home.releases), open_lake(home)
        pull_releases(lake, registry, folder.name)
        if use is not None:
            with show_progress():
                complete_release(lake, registry, folder.name, use)
                chosen = registry.use(folder.name, use)
                push_current_number(lake, registry, folder.name, use)
            out.print(f"Release {use} of {folder.name} ({escape(chosen.student)}) is current.")
        if compare is not None:
            first, second = (registry.read(folder.name, number) for number in compare)
            rows = compare_releases(first, second)
            table = build_table("", f"release {first.number}", f"release {second.number}", whole=("",))
            for row in rows:
                table.add_row(escape(row.name), escape(row.first), escape(row.second))
            print_table(table)
            differences = [{"name": row.name, "first": row.first, "second": row.second} for row in rows]
            print_json({"task": folder.name, "compared": list(compare), "differences": differences})
            return
        listed = registry.list_releases(folder.name)
        if not listed:
            raise DistillError(f"{folder.name} has no release yet. Make one with `distill release {folder.name}`.")
        current = registry.read_current_number(folder.name)
        metric = str(listed[-1].manifest["metric"]).replace("_", " ")
        columns = ("number", "student", "released", metric, "size", "current")
        table = build_table(*columns, whole=columns, numbers=("number", "size"))
        for one in listed:
            score = one.manifest["score"]["value"]
            table.add_row(
                str(one.number),
                escape(one.student),
                one.manifest["created_at"][:16].replace("T", " "),
                "" if score is None else f"{score:.3f}",
                format_bytes(one.bytes),
                "current" if one.number == current else "",
            )
        print_table(table)
        described = [_describe(one, registry) for one in listed]
        print_json({"task": folder.name, "current": current, "releases": described})


def _describe(one: Release, registry: Any) -> dict[str, Any]:
    fields = ("number", "student", "created_at", "metric", "score", "exports", "left_out")
    value = {name: one.manifest[name] for name in fields}
    is_current = registry.read_current_number(one.task) == one.number
    return {"task": one.task} | value | {"path": str(one.path), "bytes": one.bytes, "current": is_current}


def export(
    task: TaskArgument = None,
    dataset: Annotated[
        str, typer.Option(help=f"Format of the dataset: {', '.join(get_args(DatasetFormat))}.")
    ] = "openai",
    folder: Annotated[
        Path | None, typer.Option("--out", help="The folder to write to; by default `TASK-FORMAT` here.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write the dataset of a task in a format that other programs read, with a card. Runs nothing."""
    home = Home.from_env()
    with show_problems():
        from distill_dagster.pipeline.dataset_export import export_dataset

        task_folder = open_task_folder(home, task)
        format = read_dataset_format(dataset)
        target = folder or Path.cwd() / f"{task_folder.name}-{format}"
        lake = open_lake(home)
        rows, _ = lake.read(task_folder.name, "filtered_dataset", None, DATASET)
        with show_progress():
            files = export_dataset(task_folder, lake, rows, format, target)
        out.print(f"{count_noun(rows.height, 'row')} as {dataset}: {target}", soft_wrap=True, highlight=False)
        written = [str(path) for path in files]
        print_json({"task": task_folder.name, "format": dataset, "rows": rows.height, "files": written})
