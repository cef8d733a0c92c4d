"""While a run waits for a pool, say whom it waits for, and do not wait for a process that has died."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from distill_dagster.core.processes import describe_process
from distill_dagster.orchestration.dead_runs import fail_dead_runs
from distill_dagster.orchestration.tags import read_process_tag

CHECK_S = 1.0
WaitListener = Callable[[str | None], None]
"""Called with what a run waits for, whenever that changes, and with None when it goes on."""


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
