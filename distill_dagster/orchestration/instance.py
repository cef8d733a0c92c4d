"""Open the Dagster instance that the UI uses: a local folder or PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from distill_dagster.core import databases
from distill_dagster.core.database_urls import POSTGRES_VARIABLE, get_postgres_url
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.orchestration.dead_runs import fail_dead_runs

POOLS = {"teacher", "training"}
POSTGRES_STORAGE = """
# Added because DISTILL_POSTGRES_URL is set: runs, events and schedules are in that database.
storage:
  postgres:
    postgres_url:
      env: DISTILL_POSTGRES_URL
"""


def prepare_instance_folder(home: Home) -> None:
    """Create the instance folder with the project's dagster.yaml. Set DAGSTER_HOME to it unless it is set.

    With DISTILL_POSTGRES_URL the file names that variable as storage, never its value. An instance that the user
    configured stays as it is.
    """
    if url := get_postgres_url():
        # Dagster reads the variable itself, here and in the processes that it starts.
        os.environ[POSTGRES_VARIABLE] = url
    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(home.instance)
    if os.environ["DAGSTER_HOME"] != str(home.instance):
        return
    home.instance.mkdir(parents=True, exist_ok=True)
    template, target = PROJECT_FOLDER / "dagster.yaml", home.instance / "dagster.yaml"
    content = (template.read_text() if template.exists() else "") + (POSTGRES_STORAGE if url else "")
    if content and (not target.exists() or target.read_text() != content):
        temporary = target.with_suffix(f".{os.getpid()}")  # several processes may start at once
        temporary.write_text(content)
        temporary.replace(target)


@contextmanager
def open_instance(home: Home) -> Iterator[dg.DagsterInstance]:
    """Open the instance, with its pools created and runs of dead processes marked as failed."""
    prepare_instance_folder(home)
    with databases.prepare_databases():
        opened = dg.DagsterInstance.get()
        # Dagster creates a pool on first use. On PostgreSQL two runs that do so at the same time fail.
        for pool in POOLS - opened.event_log_storage.get_concurrency_keys():
            opened.event_log_storage.initialize_concurrency_limit_to_default(pool)
    with opened as instance:
        fail_dead_runs(instance)
        yield instance
