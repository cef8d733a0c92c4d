"""Follow a run to those that Dagster starts in its place when its worker was lost."""

from __future__ import annotations

import time

import dagster as dg
from dagster._core.events import RunFailureReason
from dagster._core.execution.retries import auto_reexecution_should_retry_run
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    PARENT_RUN_ID_TAG,
    RETRY_NUMBER_TAG,
    RUN_FAILURE_REASON_TAG,
)

GIVEN_UP_S = 120.0
"""A run that Dagster has not started again for so long will not be: its backfill was cancelled, or has ended."""


def find_attempts(instance: dg.DagsterInstance, run_id: str) -> list[dg.DagsterRun]:
    """Return the run and those that were started in its place, in order. It is empty if the run was deleted."""
    attempts: list[dg.DagsterRun] = []
    run = instance.get_run_by_id(run_id)
    while run is not None:
        attempts.append(run)
        run = _find_next(instance, run)
    return attempts


def _find_next(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.DagsterRun | None:
    if next_id := run.tags.get(AUTO_RETRY_RUN_ID_TAG):
        return instance.get_run_by_id(next_id)
    if run.status != dg.DagsterRunStatus.FAILURE:
        return None
    # Dagster adds the tag a moment after it has created the run.
    children = instance.get_runs(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: run.run_id}))
    return next((child for child in children if RETRY_NUMBER_TAG in child.tags), None)


def is_retried(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether Dagster will start a run again that has ended, or whether the one in its place has not ended."""
    attempts = find_attempts(instance, run_id)
    if not attempts or not instance.run_retries_enabled:
        return False
    last = attempts[-1]
    if not last.is_finished:
        return True
    reason = last.tags.get(RUN_FAILURE_REASON_TAG)
    # Not Dagster's tag `will_retry`: it is added a moment after the run has failed.
    has_retry_left = auto_reexecution_should_retry_run(instance, last, RunFailureReason(reason) if reason else None)
    if _find_next(instance, last) is not None:  # it was started meanwhile
        return True
    if not has_retry_left:
        return False
    record = instance.get_run_record_by_id(last.run_id)
    ended = record.end_time if record is not None else None
    return time.time() - (ended or time.time()) < GIVEN_UP_S
