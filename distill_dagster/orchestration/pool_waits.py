"""While a run waits for a pool: it rests, can be interrupted, says whom it waits for, and waits for no dead process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg
from dagster._core.errors import raise_execution_interrupts
from dagster._core.execution.plan.active import ActiveExecution

from distill_dagster.core.processes import describe_process
from distill_dagster.orchestration.dead_runs import fail_dead_runs
from distill_dagster.orchestration.tags import read_process_tag

CHECK_S = 1.0
REST_S = 0.2
"""How long a run that waits rests before it asks again whether it has a slot."""
WaitListener = Callable[[str | None], None]
"""Called with what a run waits for, whenever that changes, and with None when it goes on."""


def mend_pool_waits() -> None:
    """Let runs of this process that wait for a pool rest, and let an interrupt end the wait.

    Dagster's in-process executor asks in a loop without a pause, which takes a core, and keeps an interrupt until the
    next step begins. A proposal to mend the first (https://github.com/dagster-io/dagster/pull/20367) was not merged.
    """
    ActiveExecution.sleep_til_ready = _rest  # type: ignore[assignment]


def _rest(execution: ActiveExecution) -> None:
    """Sleep until a step may be ready. Raises DagsterExecutionInterruptedError on an interrupt, also an earlier one."""
    slots = execution._instance_concurrency_context
    seconds = REST_S if slots and slots.has_pending_claims() else execution.sleep_interval()
    if seconds > 0:
        with raise_execution_interrupts():
            time.sleep(seconds)


@contextmanager
def watch_pools(instance: dg.DagsterInstance, run_id: str, notify: WaitListener) -> Iterator[None]:
    """Within this block, tell the listener whom the run waits for, from a thread.

    Dagster waits for a slot inside the run and says so only in the run's log. Slots of dead processes are released.
    """
    ended = threading.Event()
    thread = threading.Thread(target=_watch, args=(instance, run_id, notify, ended), name="pools", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _watch(instance: dg.DagsterInstance, run_id: str, notify: WaitListener, ended: threading.Event) -> None:
    told: str | None = None
    while not ended.wait(CHECK_S):
        try:
            holder = find_pool_holder(instance, run_id)
            if holder is not None:
                fail_dead_runs(instance)
        except Exception:
            continue  # the database was busy: the next look tells
        if holder != told:
            notify(holder)
            told = holder


def find_pool_holder(instance: dg.DagsterInstance, run_id: str) -> str | None:
    """Say which step of which process has the pool that a run waits for. None if the run does not wait."""
    storage = instance.event_log_storage
    for pool in storage.get_concurrency_infos(sorted(storage.get_concurrency_keys())).values():
        if not any(step.run_id == run_id and step.assigned_timestamp is None for step in pool.pending_steps):
            continue
        # A step is assigned a slot before it claims it, and stays assigned afterwards.
        holders = [(slot.run_id, slot.step_key) for slot in pool.claimed_slots]
        holders += [(step.run_id, step.step_key) for step in pool.pending_steps if step.assigned_timestamp]
        others = [_describe_step(instance, *step) for step in dict.fromkeys(holders) if step[0] != run_id]
        if others:
            return f"{' and '.join(others)} (pool {pool.concurrency_key})"
    return None


def _describe_step(instance: dg.DagsterInstance, run_id: str, step_key: str) -> str:
    task, _, stage = step_key.rpartition("__")
    run = instance.get_run_by_id(run_id)
    process = read_process_tag(run_id, run.tags) if run else None
    partition = run.tags.get("dagster/partition") if run else None
    what = f"{stage}[{partition}]" if partition else stage
    who = describe_process(process) if process else f"run {run_id[:8]}"
    return f"{what} of {task} is running in {who}"
