"""Refresh a task: what `distill refresh` and the schedule do, one refresh at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from filelock import FileLock, Timeout

from distill_dagster.core.errors import InputError
from distill_dagster.orchestration.partitions import sync_task
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.orchestration.runner import RunListener, Runner
from distill_dagster.pipeline.stage_table import REFRESHES_ASSET
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tables.lake import format_artifact_name
from distill_dagster.tasks import imagined


def refresh_task(runner: Runner, students: list[str], force: bool, tell: RunListener) -> RunSummary:
    """Bring a task up to date.

    Args:
        students: Default: those that have been trained before, or else the task's default student.
        force: Train even if few rows changed, and ask again for missing rows at once.

    Raises:
        InputError: task.yaml or a JSONL file is malformed. A malformed slice fails alone.
    """
    with _lock_refresh(runner.home.locks / f"{runner.folder.name}.refresh", tell):
        return _refresh_task(runner, students, force, tell)


@contextmanager
def _lock_refresh(lock: Path, tell: RunListener) -> Iterator[None]:
    """Hold the task's refresh lock: two refreshes at once would train the same student twice."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)  # the system releases it when the process ends, however it ends
    try:
        held.acquire(timeout=0)
    except Timeout:
        tell("waiting", "another refresh of this task is running")
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _refresh_task(runner: Runner, students: list[str], force: bool, tell: RunListener) -> RunSummary:
    folder, lake, instance = runner.folder, runner.lake, runner.instance
    apart = (folder.path / "slices", folder.accepted, folder.accepted and folder.accepted / imagined.IMAGINED_FOLDER)
    if errors := [p for p in check_task_folder(folder) if p.severity == "error" and p.file.parent not in apart]:
        raise InputError(errors)
    trained = [s for s in folder.task.students if lake.read_record(folder.name, "student_adapter", s) is not None]
    sync_task(folder, instance)
    return runner.refresh(students or trained or [folder.task.chosen_student], tell, force)


def build_refresh_event(task: str, outcome: RunSummary) -> dg.AssetMaterialization:
    """Build the event that records one refresh; Dagster plots its figures over time."""
    made = [format_artifact_name(asset, partition) for asset, keys in outcome.partitions.items() for partition in keys]
    metadata: dict[str, Any] = {
        "runs": len(outcome.runs),
        "artifacts": len(made),
        "made": ", ".join(made[:200]) or "nothing",
        "teacher_calls": outcome.teacher_calls,
        "teacher_calls_cached": outcome.teacher_calls_cached,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "cost_usd": "unknown" if outcome.cost_usd is None else outcome.cost_usd,
        "failed": len(outcome.failed),
        "waiting": "; ".join(f"{n}: {why}" for n, why in (outcome.waiting | outcome.pending).items()) or "nothing",
        "wall_s": round(outcome.wall_s, 1),
    }
    return dg.AssetMaterialization([task, REFRESHES_ASSET], metadata=metadata)
