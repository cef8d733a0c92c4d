"""Mark runs as failed whose process has ended, and release the pool slots that nothing uses any more."""

from __future__ import annotations

import time

import dagster as dg
from dagster._core.launcher.base import WorkerStatus

from distill_dagster.core.processes import is_process_gone
from distill_dagster.orchestration.tags import read_process_tag

OPEN_STATUSES = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
RELEASE_AFTER_S = 60.0
"""A run that has ended keeps its slots for so long, since its process may still be releasing them."""


def fail_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs of dead processes of this host as failed, and release all slots of runs that have ended.

    A killed process leaves its run STARTED and its slot taken, so every other run that needs the pool would wait
    forever. Returns the ids of the runs that were marked.
    """
    marked = []
    for run in instance.get_runs(dg.RunsFilter(statuses=OPEN_STATUSES)):
        if not _has_dead_process(run):
            continue
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, "The process of this run has ended.")
        else:
            instance.report_run_failed(run, "The process of this run has ended. `distill run` will resume it.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        marked.append(run.run_id)
    _release_unused_slots(instance)
    return marked


def fail_lost_starts(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs as failed whose worker was lost before they began, as far as the run launcher knows.

    Dagster asks the launcher only about runs that have begun. Returns the ids of the runs that were marked.
    """
    starting = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING]))
    if not starting or not instance.run_launcher.supports_check_run_worker_health:
        return []
    marked = []
    for run in starting:
        health = instance.run_launcher.check_run_worker_health(run)
        found = instance.get_run_by_id(run.run_id)
        if health.status == WorkerStatus.FAILED and found and found.status == dg.DagsterRunStatus.STARTING:
            instance.report_run_failed(run, f"The worker of this run was lost before it began. {health.msg or ''}")
            marked.append(run.run_id)
    return marked


def _release_unused_slots(instance: dg.DagsterInstance) -> None:
    """Release slots, and places in the queue for one, of runs that ended or were deleted."""
    storage = instance.event_log_storage
    pools = storage.get_concurrency_infos(sorted(storage.get_concurrency_keys())).values()
    holders = {slot.run_id for pool in pools for slot in pool.claimed_slots}
    holders |= {step.run_id for pool in pools for step in pool.pending_steps}
    for run_id in holders:
        record = instance.get_run_record_by_id(run_id)
        if record is None or (record.dagster_run.is_finished and _is_over(record)):
            storage.free_concurrency_slots_for_run(run_id)


def _is_over(record: dg.RunRecord) -> bool:
    """Whether nothing of an ended run is left: its process has ended too, or the run ended a while ago."""
    ended = record.end_time or 0.0
    return _has_dead_process(record.dagster_run) or time.time() - ended > RELEASE_AFTER_S


def _has_dead_process(run: dg.DagsterRun) -> bool:
    process = read_process_tag(run.run_id, run.tags)
    return process is not None and is_process_gone(process)
