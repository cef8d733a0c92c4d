"""Pools between processes: who has a slot, and that a dead process does not keep it. On a real Dagster instance."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import dagster as dg
import psutil
import pytest
from dagster._core.execution.plan.active import ActiveExecution
from dagster._core.execution.plan.step import ExecutionStep

from assets.dead_runs import build_dead_runs_sensor
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.core.processes import HOST, get_process_name
from distill_dagster.orchestration import dead_runs
from distill_dagster.orchestration.dead_runs import fail_dead_runs
from distill_dagster.orchestration.pool_waits import REST_S, find_pool_holder, mend_pool_waits, watch_pools
from distill_dagster.orchestration.tags import PROCESS_TAG, build_process_tag, read_process_tag
from tests.support.waiting import HANG_S, wait_until

POOL, STEP = "training", "shop_mail__teacher_gate"


@dg.job
def work() -> None:
    """A job of which only the runs matter."""


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    shutil.copy(PROJECT_FOLDER / "dagster.yaml", tmp_path)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.event_log_storage.initialize_concurrency_limit_to_default(POOL)
        yield instance


@pytest.fixture(scope="module")
def dead() -> str:
    """The name of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{HOST}:{process.pid}:{psutil.Process(process.pid).create_time():.0f}"
    process.communicate(b"\n")
    return name


def create_run(
    instance: dg.DagsterInstance, process: str, status: dg.DagsterRunStatus = dg.DagsterRunStatus.STARTED
) -> str:
    run = instance.create_run_for_job(work, status=status)
    if process:
        instance.add_run_tags(run.run_id, {PROCESS_TAG: f"{run.run_id} {process}"})
    return str(run.run_id)


def claim(instance: dg.DagsterInstance, run_id: str, step: str = STEP) -> bool:
    return bool(instance.event_log_storage.claim_concurrency_slot(POOL, run_id, step).is_claimed)


def get_status(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus:
    run = instance.get_run_by_id(run_id)
    assert run is not None
    return run.status


def test_a_run_that_waits_names_the_process_step_and_pool_that_it_waits_for(instance: dg.DagsterInstance) -> None:
    holder, waiter = create_run(instance, get_process_name()), create_run(instance, get_process_name())
    assert find_pool_holder(instance, waiter) is None, "it needs no pool"
    assert claim(instance, holder)
    assert find_pool_holder(instance, holder) is None, "it has the pool"
    assert not claim(instance, waiter)
    pid = psutil.Process().pid
    assert find_pool_holder(instance, waiter) == (
        f"teacher_gate of shop_mail is running in process {pid} (pool training)"
    )
    assert fail_dead_runs(instance) == []
    instance.event_log_storage.free_concurrency_slots_for_run(holder)
    assert find_pool_holder(instance, waiter) is None


@pytest.mark.parametrize("status", [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING])
def test_a_dead_process_loses_its_slot(instance: dg.DagsterInstance, dead: str, status: dg.DagsterRunStatus) -> None:
    holder, waiter = create_run(instance, dead, status), create_run(instance, get_process_name())
    assert claim(instance, holder)
    assert not claim(instance, waiter)
    assert fail_dead_runs(instance) == [holder]
    ended = dg.DagsterRunStatus.CANCELED if status == dg.DagsterRunStatus.CANCELING else dg.DagsterRunStatus.FAILURE
    assert get_status(instance, holder) == ended
    assert get_status(instance, waiter) == dg.DagsterRunStatus.STARTED
    assert claim(instance, waiter)


def test_a_dead_process_loses_its_place_in_the_queue(instance: dg.DagsterInstance, dead: str) -> None:
    """Otherwise Dagster gives the next free slot to it, and nobody gets it again."""
    holder, queued, waiter = (create_run(instance, name) for name in (get_process_name(), dead, get_process_name()))
    assert [claim(instance, run) for run in (holder, queued)] == [True, False]
    instance.event_log_storage.free_concurrency_slots_for_run(holder)
    assert not claim(instance, waiter), "the slot is the dead one's"
    fail_dead_runs(instance)
    assert claim(instance, waiter)


def test_a_run_that_ended_without_its_process_keeps_no_slot(instance: dg.DagsterInstance, dead: str) -> None:
    """Somebody marks a run as failed in the UI, or deletes it, after its process was killed."""

    def mark_as_failed(run_id: str) -> None:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        instance.report_run_failed(run)

    waiter = create_run(instance, get_process_name())
    for holder, end in (
        (create_run(instance, dead), mark_as_failed),
        (create_run(instance, dead), instance.delete_run),
        (create_run(instance, ""), instance.delete_run),
    ):
        assert claim(instance, holder)
        end(holder)
        fail_dead_runs(instance)
        assert claim(instance, waiter)
        instance.event_log_storage.free_concurrency_slots_for_run(waiter)


def test_a_run_that_has_just_ended_may_release_its_slots_itself(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder, waiter = create_run(instance, get_process_name()), create_run(instance, get_process_name())
    assert claim(instance, holder)
    run = instance.get_run_by_id(holder)
    assert run is not None
    instance.report_run_failed(run)
    fail_dead_runs(instance)
    assert not claim(instance, waiter), "its process is alive"
    monkeypatch.setattr(dead_runs, "RELEASE_AFTER_S", -1.0)
    fail_dead_runs(instance)
    assert claim(instance, waiter), "it ended long ago"


def test_the_process_of_a_run_is_not_that_of_its_copy(instance: dg.DagsterInstance, dead: str) -> None:
    """A run that is executed again in the UI has the tags of the first one until its own process writes its tag."""
    first = create_run(instance, dead, dg.DagsterRunStatus.FAILURE)
    run = instance.get_run_by_id(first)
    assert run is not None
    copy = instance.create_run_for_job(work, tags=run.tags, status=dg.DagsterRunStatus.STARTING)
    assert fail_dead_runs(instance) == []
    assert get_status(instance, copy.run_id) == dg.DagsterRunStatus.STARTING
    instance.add_run_tags(copy.run_id, build_process_tag(copy.run_id))
    found = instance.get_run_by_id(copy.run_id)
    assert found is not None
    assert read_process_tag(copy.run_id, found.tags) == get_process_name()


def test_while_a_run_waits_the_listener_is_told_and_a_dead_holder_is_found(
    instance: dg.DagsterInstance,
) -> None:
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    name = f"{HOST}:{other.pid}:{psutil.Process(other.pid).create_time():.0f}"
    holder, waiter = create_run(instance, name), create_run(instance, get_process_name())
    assert claim(instance, holder)
    assert not claim(instance, waiter)
    told: list[str | None] = []
    with watch_pools(instance, waiter, told.append):
        wait_until(lambda: told, "word of whom it waits for")
        assert f"process {other.pid}" in str(told[0])
        other.kill()
        other.wait()
        wait_until(lambda: len(told) == 2, "word that the wait has ended")
    assert told[1] is None
    assert claim(instance, waiter)
    assert not [thread for thread in threading.enumerate() if thread.name == "pools"]


def test_a_run_that_waits_rests_between_its_questions(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    @dg.op(pool=POOL)
    def train() -> None:
        """Needs the pool."""

    @dg.job(executor_def=dg.in_process_executor)
    def needs_the_pool() -> None:
        train()

    mend_pool_waits()
    asked: list[float] = []
    ask = ActiveExecution.get_next_step

    def count(execution: ActiveExecution) -> ExecutionStep | None:
        asked.append(time.monotonic())
        return ask(execution)

    monkeypatch.setattr(ActiveExecution, "get_next_step", count)
    holder = create_run(instance, get_process_name())
    assert claim(instance, holder)
    run = threading.Thread(target=lambda: needs_the_pool.execute_in_process(instance=instance))
    run.start()
    wait_until(lambda: len(asked) > 5, "a few questions")
    instance.event_log_storage.free_concurrency_slots_for_run(holder)
    run.join(HANG_S)
    assert not run.is_alive()
    assert min(after - before for before, after in pairwise(asked[:5])) >= REST_S


def test_the_sensor_of_the_ui_ends_dead_runs_too(instance: dg.DagsterInstance, dead: str) -> None:
    holder = create_run(instance, dead)
    sensor = build_dead_runs_sensor()
    found = sensor(dg.build_sensor_context(instance=instance))
    assert isinstance(found, dg.SkipReason)
    assert holder[:8] in str(found.skip_message)
    assert get_status(instance, holder) == dg.DagsterRunStatus.FAILURE
