"""`distill imagine`: let the teacher imagine prompts."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.markup import escape

from distill_dagster.cli.console import build_table, print_json, print_table, show_problems
from distill_dagster.cli.options import (
    BudgetTokens,
    BudgetUsd,
    JsonOption,
    QuietOption,
    SliceOption,
    TaskArgument,
    build_cap,
    open_task_folder,
)
from distill_dagster.cli.output import KEPT, finish_command, print_failures, print_next
from distill_dagster.cli.run_display import show_progress
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.backfill_selection import select_named_slices
from distill_dagster.tasks import TaskFolder


def imagine(
    task: TaskArgument = None,
    slices: SliceOption = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Retire the prompts imagined so far and start again.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be asked and run nothing.")] = False,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Let the teacher imagine prompts until every slice with a `target` has that many.

    `distill run` does this too. This command asks for answers to golden and dev only, for the gate. It tries again
    for slices that are below their target.
    Exits with code 1 if something fails; a slice that stays below its target is not a failure.
    """
    home = Home.from_env()
    started = time.perf_counter()
    with show_problems(KEPT):
        folder, cap = open_task_folder(home, task), build_cap(budget_usd, budget_tokens)
        from distill_dagster.tasks.imagined import get_imagined_path
        from distill_dagster.teacher.imagine.log import start_new_generation

        keys = _select_slices_with_target(folder, slices)
        if dry_run:
            counts = _print_imagined(folder, keys, fresh)
            requests = sum(row["requests"] for row in counts.values())
            print_json({"imagined": counts, "teacher_calls": requests})
            return
        with show_progress() as display:
            from distill_dagster import orchestration
            from distill_dagster.definitions import build_definitions

            with orchestration.open_instance(home) as instance:
                if fresh and folder.accepted is not None:
                    for key in keys:
                        start_new_generation(get_imagined_path(folder.accepted, key))
                orchestration.sync_task(folder, instance)
                runner = orchestration.Runner(home, folder, instance, build_definitions(home), cap=cap)
                summary = runner.imagine(keys, display.notify)
        summary.wall_s = time.perf_counter() - started
        counts = _print_imagined(folder, keys)
        print_failures(summary)
        finish_command(folder, summary, f"distill imagine {folder.name}", imagined=counts)
        print_next(f"distill run {folder.name}", "asks the teacher for their answers.")


def _select_slices_with_target(folder: TaskFolder, slices: list[str] | None) -> list[str]:
    """Return the named slices, or all slices with a target.

    Raises:
        InputError: A named slice has no target.
        DistillError: No slice has one.
    """
    keys = select_named_slices(folder, slices) if slices else folder.list_slice_keys()
    with_target = [key for key in keys if folder.read_slice(key).target is not None]
    for key in keys if slices else []:
        if key not in with_target:
            remedy = "Add `target: N`, the number of prompts it should have."
            raise InputError([Problem(folder.path / "slices" / f"{key}.yaml", "the slice has no target.", remedy)])
    if not with_target:
        raise DistillError(f"No slice of {folder.name} has a target. Add `target: N` to a file in slices/.")
    return with_target


def _print_imagined(folder: TaskFolder, keys: list[str], fresh: bool = False) -> dict[str, dict[str, int]]:
    """Print how many prompts slices have and need.

    Args:
        fresh: Count as if the prompts imagined so far were retired.
    """
    from distill_dagster.tasks.imagined import ImagineHistory
    from distill_dagster.teacher.imagine.plan import count_imagine_requests

    table = build_table("slice", "target", "imagined", "retired", "missing", "requests", "at most")
    counts: dict[str, dict[str, int]] = {}
    for key in keys:
        slice_ = folder.read_slice(key)
        if fresh:
            before = slice_.imagination
            slice_ = slice_.with_imagined(ImagineHistory(retired=before.retired + len(before.prompts)))
        need, imagined = count_imagine_requests(folder.task, slice_), slice_.imagination
        counts[key] = {
            "target": slice_.target or 0,
            "imagined": len(imagined.prompts),
            "retired": imagined.retired,
            "missing": need.prompts,
            "requests": need.requests,
            "at_most": need.at_most,
        }
        table.add_row(escape(key), *(str(number) for number in counts[key].values()))
    print_table(table)
    return counts
