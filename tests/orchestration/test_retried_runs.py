"""A run that Dagster starts again is followed to the one in its place."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.storage.tags import AUTO_RETRY_RUN_ID_TAG, PARENT_RUN_ID_TAG, RETRY_NUMBER_TAG, ROOT_RUN_ID_TAG

from assets.alerts import build_alert
from distill_dagster.orchestration import retried_runs
from distill_dagster.orchestration.retried_runs import find_attempts, is_retried
from distill_dagster.orchestration.run_outcome import read_outcome


@dg.job
def nothing() -> None:
    pass


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    retries = {"enabled": True, "max_retries": 1, "retry_on_asset_or_op_failure": False}
    with dg.instance_for_test({"run_retries": retries}) as instance:
        yield instance


def start(instance: dg.DagsterInstance, parent: dg.DagsterRun | None = None, is_tagged: bool = True) -> dg.DagsterRun:
    """Start a run, in the place of another one as Dagster's daemon does it."""
    tags = {}
    if parent:
        tags = {PARENT_RUN_ID_TAG: parent.run_id, ROOT_RUN_ID_TAG: parent.run_id, RETRY_NUMBER_TAG: "1"}
    ids: dict[str, Any] = {"parent_run_id": parent.run_id, "root_run_id": parent.run_id} if parent else {}
    run = instance.create_run_for_job(nothing, status=dg.DagsterRunStatus.STARTED, tags=tags, **ids)
    if parent and is_tagged:
        instance.add_run_tags(parent.run_id, {AUTO_RETRY_RUN_ID_TAG: run.run_id})
    return run


def test_a_lost_run_goes_on_in_the_one_in_its_place(instance: dg.DagsterInstance) -> None:
    first = start(instance)
    instance.report_run_failed(first, "its worker was lost")
    assert is_retried(instance, first.run_id)
    second = start(instance, first)
    assert is_retried(instance, first.run_id)
    instance.report_run_failed(second, "its worker was lost too")
    assert not is_retried(instance, first.run_id), "one retry was allowed"
    assert [run.run_id for run in find_attempts(instance, first.run_id)] == [first.run_id, second.run_id]


def test_a_run_in_its_place_that_dagster_has_not_tagged_yet_is_found(instance: dg.DagsterInstance) -> None:
    first = start(instance)
    instance.report_run_failed(first, "its worker was lost")
    second = start(instance, first, is_tagged=False)
    assert is_retried(instance, first.run_id), "the last retry that is allowed has just been created"
    instance.report_run_failed(second, "its worker was lost too")
    assert not is_retried(instance, first.run_id)


def test_the_outcome_of_a_lost_run_says_what_dagster_says(instance: dg.DagsterInstance) -> None:
    run = start(instance)
    instance.report_run_failed(run, "its worker was lost")
    events = [entry.dagster_event for entry in instance.all_logs(run.run_id) if entry.dagster_event is not None]
    outcome = read_outcome(run.run_id, events, success=False)
    assert outcome.explain_failure("any step") == "its worker was lost"


def test_only_the_last_of_the_lost_runs_sends_an_alert(instance: dg.DagsterInstance) -> None:
    first = start(instance)
    instance.report_run_failed(first, "its worker was lost")
    assert build_alert(_build_context(instance, first)) is None
    second = start(instance, first)
    instance.report_run_failed(second, "its worker was lost too")
    assert build_alert(_build_context(instance, first)) is None
    alert = build_alert(_build_context(instance, second))
    assert alert is not None
    assert alert.run_id == second.run_id


def _build_context(instance: dg.DagsterInstance, run: dg.DagsterRun) -> dg.RunFailureSensorContext:
    failure = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)[-1].dagster_event
    failed = instance.get_run_by_id(run.run_id)
    assert failure is not None
    assert failed is not None
    context = dg.build_run_status_sensor_context("alerts", failure, instance, failed)
    return context.for_run_failure()


def test_a_run_that_failed_in_a_step_has_ended(instance: dg.DagsterInstance) -> None:
    run = start(instance)
    instance.report_run_failed(run, "", JobFailureData(error=None, failure_reason=RunFailureReason.STEP_FAILURE))
    assert not is_retried(instance, run.run_id)


def test_a_run_that_nobody_starts_again_has_ended(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(instance)
    instance.report_run_failed(run, "its worker was lost, and its backfill was cancelled")
    later = time.time() + retried_runs.GIVEN_UP_S + 1
    monkeypatch.setattr(retried_runs.time, "time", lambda: later)
    assert not is_retried(instance, run.run_id)


def test_a_deleted_run_has_no_attempts(instance: dg.DagsterInstance) -> None:
    assert find_attempts(instance, "00000000-0000-0000-0000-000000000000") == []
    assert not is_retried(instance, "00000000-0000-0000-0000-000000000000")
