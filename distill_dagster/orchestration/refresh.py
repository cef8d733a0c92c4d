"""Refresh a task: what `distill refresh` and the schedule do, one refresh at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
from filelock import FileLock, Timeout

from distill_dagster.core.errors import InputError
from distill_dagster.core.processes import describe_process, get_process_name
from distill_dagster.orchestration.partitions import find_trained_students, sync_task
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.orchestration.runner import Runner
from distill_dagster.pipeline.run_events import RunEvent, RunListener
from distill_dagster.pipeline.stage_table import REFRESHES_ASSET
from distill_dagster.pipeline.task_check import check_task_folder
from distill_dagster.tables.lake import format_artifact_name
from distill_dagster.tasks import imagined


def refresh_task(runner: Runner, students: list[str], force: bool, notify: RunListener) -> RunSummary:
    """Bring a task up to date.

    Args:
        students: Default: those that were trained before. If there are none, the task's default student.
        force: Train even if few rows changed, and ask again for missing rows at once.

    Raises:
        InputError: task.yaml or a JSONL file is malformed. A malformed slice fails alone.
    """
    with _lock_refresh(runner.home.locks / f"{runner.folder.name}.refresh", notify):
        return _refresh_task(runner, students, force, notify)


@contextmanager
def _lock_refresh(path: Path, notify: RunListener) -> Iterator[None]:
    """Hold the task's refresh lock: two refreshes at once would train the same student twice."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # the system releases it even if the process is killed
    holder = path.with_name(f"{path.name}.process")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        name = holder.read_text() if holder.exists() else ""
        who = f" in {describe_process(name)}" if name else ""
        notify(RunEvent("waiting", why=f"another refresh of this task is running{who}"))
        lock.acquire()
        notify(RunEvent("resumed"))
    holder.write_text(get_process_name())
    try:
        yield
    finally:
        lock.release()


def _refresh_task(runner: Runner, students: list[str], force: bool, notify: RunListener) -> RunSummary:
    folder, lake, instance = runner.folder, runner.lake, runner.instance
    accepted = folder.accepted
    slice_folders = {folder.path / "slices", accepted}
    slice_folders |= {place / imagined.IMAGINED_FOLDER for place in (folder.path, accepted) if place}
    if errors := [p for p in check_task_folder(folder) if p.severity == "error" and p.file.parent not in slice_folders]:
        raise InputError(errors)
    trained = find_trained_students(folder, lake)
    sync_task(folder, instance, trained)
    runner.reload()
    return runner.refresh(students or trained or [folder.task.chosen_student], notify, force)


def build_refresh_event(task: str, summary: RunSummary) -> dg.AssetMaterialization:
    """Build the event that records one refresh. Dagster plots its figures over time."""
    made = [format_artifact_name(asset, partition) for asset, keys in summary.partitions.items() for partition in keys]
    metadata: dict[str, Any] = {
        "runs": len(summary.runs),
        "artifacts": len(made),
        "made": ", ".join(made[:200]) or "nothing",
        "teacher_calls": summary.teacher_calls,
        "teacher_calls_cached": summary.teacher_calls_cached,
        "prompt_tokens": summary.prompt_tokens,
        "completion_tokens": summary.completion_tokens,
        "cost_usd": "unknown" if summary.cost_usd is None else summary.cost_usd,
        "failed": len(summary.failed),
        "waiting": "; ".join(f"{n}: {why}" for n, why in (summary.waiting | summary.pending).items()) or "nothing",
        "wall_s": round(summary.wall_s, 1),
    }
    return dg.AssetMaterialization([task, REFRESHES_ASSET], metadata=metadata)
