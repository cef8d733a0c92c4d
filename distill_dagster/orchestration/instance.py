"""The Dagster instance: the UI's, in a folder of its own or on PostgreSQL."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from distill_dagster.core import databases
from distill_dagster.core.database_urls import POSTGRES_VARIABLE, get_postgres_url
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.core.processes import is_process_alive
from distill_dagster.orchestration.tags import HOST_TAG, PID_TAG

POOLS = {"teacher", "training"}
POSTGRES_STORAGE = """
# Added because DISTILL_POSTGRES_URL is set: runs, events and schedules are in that database.
storage:
  postgres:
    postgres_url:
      env: DISTILL_POSTGRES_URL
"""


def prepare_instance_folder(home: Home) -> None:
    """Make the instance's folder, with the project's dagster.yaml, and point DAGSTER_HOME at it unless it is set.

    With DISTILL_POSTGRES_URL the file names that variable as storage, never its value. An instance of the user's own
    is left as it is.
    """
    if url := get_postgres_url():
        # Dagster reads the variable itself, here and in the processes that it starts.
        os.environ[POSTGRES_VARIABLE] = url
    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(home.instance)
    if os.environ["DAGSTER_HOME"] != str(home.instance):
        return
    home.instance.mkdir(parents=True, exist_ok=True)
    template, there = PROJECT_FOLDER / "dagster.yaml", home.instance / "dagster.yaml"
    wanted = (template.read_text() if template.exists() else "") + (POSTGRES_STORAGE if url else "")
    if wanted and (not there.exists() or there.read_text() != wanted):
        temporary = there.with_suffix(f".{os.getpid()}")  # processes may start at once
        temporary.write_text(wanted)
        temporary.replace(there)


@contextmanager
def open_instance(home: Home) -> Iterator[dg.DagsterInstance]:
    prepare_instance_folder(home)
    with databases.prepare_databases():
        opened = dg.DagsterInstance.get()
        # Dagster makes a pool at its first use; on PostgreSQL two runs that do so at once fail.
        for pool in POOLS - opened.event_log_storage.get_concurrency_keys():
            opened.event_log_storage.initialize_concurrency_limit_to_default(pool)
    with opened as instance:
        _fail_dead_runs(instance)
        yield instance


def _fail_dead_runs(instance: dg.DagsterInstance) -> None:
    """Runs of a killed `distill` stay STARTED and keep their pool's slot: without this the next run waits for ever."""
    open_runs = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags={HOST_TAG: platform.node()})
    for record in instance.get_run_records(open_runs):
        run = record.dagster_run
        if not is_process_alive(int(run.tags[PID_TAG]), record.start_time):
            instance.report_run_failed(run, "The process of this run is gone. `distill run` takes up what it left.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
