"""`distill run`, `refresh` and `backfill`: materialize what is missing or stale."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markup import escape

from distill_dagster.cli.console import err, out, show_problems
from distill_dagster.cli.cost import print_estimate
from distill_dagster.cli.options import (
    BudgetTokens,
    BudgetUsd,
    JsonOption,
    LaunchOption,
    QuietOption,
    SliceOption,
    StudentOption,
    TaskArgument,
    build_cap,
    choose_students,
    open_task_folder,
)
from distill_dagster.cli.output import KEPT, finish_command, print_failures, print_leaderboard, print_next
from distill_dagster.cli.run_display import show_progress
from distill_dagster.core.errors import DistillError, InputError
from distill_dagster.core.formatting import count_noun, format_seconds
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.backfill_selection import (
    SliceSelector,
    select_named_slices,
    select_slice_range,
    select_slices_by_state,
)
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.pipeline.task_check import check_task_folder


def run(
    task: TaskArgument = None,
    slices: SliceOption = None,
    students: StudentOption = None,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Materialize everything that is missing or stale, and show the result."""
    home = Home.from_env()
    started = time.perf_counter()
    with show_problems(KEPT):
        folder, cap = open_task_folder(home, task), build_cap(budget_usd, budget_tokens)
        problems = check_task_folder(folder)
        if errors := [p for p in problems if p.severity == "error"]:
            raise InputError(errors)
        if problems:
            warnings = count_noun(len(problems), "warning")
            err.print(f"[yellow]{warnings}[/yellow]: `distill check {folder.name}` shows what", soft_wrap=True)
        chosen = choose_students(folder, students)
        keys = select_named_slices(folder, slices) if slices else None
        with show_progress() as display:
            from distill_dagster import orchestration
            from distill_dagster.definitions import build_definitions

            with orchestration.open_instance(home) as instance:
                orchestration.sync_task(folder, instance)
                runner = orchestration.Runner(home, folder, instance, build_definitions(home), cap=cap)
                summary = runner.run(keys, chosen, display.notify)
        summary.wall_s = time.perf_counter() - started
        if not summary.runs and not summary.blocked and not summary.failed:
            out.print(f"[green]{folder.name} is up to date: nothing to do[/green] ({format_seconds(summary.wall_s)})")
        print_failures(summary)
        shown = keys is None and print_leaderboard(home, folder, chosen)
        finish_command(folder, summary, f"distill run {folder.name}")
        if shown:
            print_next(
                f"distill report {folder.name} --open", "says what to do next, `distill ui` shows every run and table."
            )


def refresh(
    task: TaskArgument = None,
    students: StudentOption = None,
    force: Annotated[
        bool, typer.Option("--force", help="Train even if few rows changed, and ask for missing rows at once.")
    ] = False,
    launch: LaunchOption = None,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Bring a task up to date as the schedule does. Default: every student that has been trained before.

    Compares today's files with what each artifact was made from, so no edit is missed. A student is trained again
    only if one of its settings changed, or more than `refresh.min_new_rows` rows of the dataset.
    """
    home = Home.from_env()
    started = time.perf_counter()
    with show_problems(KEPT):
        folder, cap = open_task_folder(home, task), build_cap(budget_usd, budget_tokens)
        chosen = choose_students(folder, students) if students else []
        with show_progress() as display:
            from distill_dagster import orchestration
            from distill_dagster.definitions import build_definitions

            with orchestration.open_instance(home) as instance:
                runner = orchestration.build_runner(home, folder, instance, build_definitions, cap=cap, launch=launch)
                summary = orchestration.refresh_task(runner, chosen, force, display.notify)
                summary.wall_s = time.perf_counter() - started
                instance.report_runless_asset_event(orchestration.build_refresh_event(folder.name, summary))
        for name, why in summary.waiting.items():
            out.print(f"[dim]waiting[/dim] {escape(name)}: {escape(why)}", soft_wrap=True)
        if not summary.runs and not summary.blocked and not summary.failed:
            out.print(f"[green]{folder.name}: nothing to refresh[/green] ({format_seconds(summary.wall_s)})")
        print_failures(summary)
        finish_command(folder, summary, f"distill refresh {folder.name}")


def backfill(
    task: TaskArgument = None,
    slices: SliceOption = None,
    first: Annotated[str | None, typer.Option("--from", help="First slice of a range, in alphabetical order.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Last slice of the range, inclusive.")] = None,
    lacking: Annotated[
        SliceSelector | None,
        typer.Option("--which", help="Select slices by state. Default without other options: stale."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be asked and run nothing.")] = False,
    launch: LaunchOption = None,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Materialize slices up to scored_completions. Slices that you name, or a range of them, run even if fresh.

    `--which stale` selects slices that are not fresh, `missing` those never made, `failed` those whose last run
    failed, `all` every slice. Waits until all runs end; the exit code says whether they succeeded.
    """
    home = Home.from_env()
    started = time.perf_counter()
    with show_problems(KEPT):
        folder, cap = open_task_folder(home, task), build_cap(budget_usd, budget_tokens)
        if sum((bool(slices), first is not None or last is not None, lacking is not None)) > 1:
            raise DistillError("Select slices in one way only: --slice, or --from and --to, or --which.")
        with show_progress() as display:
            from distill_dagster import orchestration
            from distill_dagster.definitions import build_definitions

            with orchestration.open_instance(home) as instance:
                orchestration.sync_task(folder, instance)
                state = TaskState(folder, open_lake(home))
                if slices:
                    keys = select_named_slices(folder, slices)
                elif first is not None or last is not None:
                    keys = select_slice_range(folder, first, last)
                else:
                    failed = orchestration.find_failed_slices(folder, instance) if lacking == "failed" else set()
                    keys = select_slices_by_state(state, lacking or "stale", failed)
                if not dry_run:
                    again = lacking in ("failed", "all") or bool(slices or first or last)
                    runner = orchestration.build_runner(
                        home, folder, instance, build_definitions, cap=cap, launch=launch
                    )
                    runner.state = state  # a thousand slices need not be read twice
                    summary = runner.backfill(keys, display.notify, again)
        if dry_run:
            print_estimate(home, folder, state, keys, golden=False)
            return
        summary.wall_s = time.perf_counter() - started
        if not keys:
            out.print(f"[green]{folder.name}: no slice to backfill[/green] ({format_seconds(summary.wall_s)})")
        print_failures(summary)
        finish_command(folder, summary, f"distill backfill {folder.name} --which failed")
