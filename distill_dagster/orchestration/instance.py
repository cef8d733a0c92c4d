"""Open the Dagster instance that the UI uses: a local folder or PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
import yaml

from distill_dagster.config.deployment import DeploymentSpec
from distill_dagster.core import databases
from distill_dagster.core.database_urls import POSTGRES_VARIABLE, get_postgres_url
from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.orchestration.dead_runs import fail_dead_runs
from distill_dagster.orchestration.ray_settings import build_instance_settings, require_ray
from distill_dagster.tasks.deployment_file import read_deployment

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

    With DISTILL_POSTGRES_URL the file names that variable as storage, never its value. What deployment.yaml says about
    runs is in it too. An instance that the user configured stays as it is.

    Raises:
        DistillError: deployment.yaml has a mistake, or names an engine whose packages are not installed.
    """
    deployment = read_deployment()
    if url := get_postgres_url():
        # Dagster reads the variable itself, here and in the processes that it starts.
        os.environ[POSTGRES_VARIABLE] = url
    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(home.instance)
    if os.environ["DAGSTER_HOME"] != str(home.instance):
        return
    home.instance.mkdir(parents=True, exist_ok=True)
    template, target = PROJECT_FOLDER / "dagster.yaml", home.instance / "dagster.yaml"
    content = _add_deployment(template.read_text() if template.exists() else "", deployment)
    content += POSTGRES_STORAGE if url else ""
    if content and (not target.exists() or target.read_text() != content):
        temporary = target.with_suffix(f".{os.getpid()}")  # several processes may start at once
        temporary.write_text(content)
        temporary.replace(target)


def _add_deployment(text: str, deployment: DeploymentSpec) -> str:
    """Add what deployment.yaml says to the text of dagster.yaml. If it says nothing, the text stays as it is.

    Raises:
        DistillError: Both name a run launcher, or the packages of Ray are missing.
    """
    settings: dict[str, Any] = {}
    if deployment.runs.at_once is not None:
        settings["concurrency"] = {"runs": {"max_concurrent_runs": deployment.runs.at_once}}
    if deployment.ray is not None and deployment.ray.runs:
        require_ray()
        settings |= build_instance_settings(deployment.ray)
    if not settings:
        return text
    config = yaml.safe_load(text) or {}
    if "run_launcher" in config and "run_launcher" in settings:
        raise DistillError(
            "dagster.yaml names a run launcher, and deployment.yaml sets `ray.runs`. Remove one of the two."
        )
    return "# dagster.yaml with what deployment.yaml adds.\n" + yaml.safe_dump(
        _merge(config, settings), sort_keys=False
    )


def _merge(config: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Put settings over a configuration, block by block."""
    merged = dict(config)
    for name, value in settings.items():
        old = merged.get(name)
        merged[name] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


@contextmanager
def open_instance(home: Home) -> Iterator[dg.DagsterInstance]:
    """Open the instance, with its pools created and runs of dead processes marked as failed."""
    prepare_instance_folder(home)
    with databases.prepare_databases():
        opened = dg.DagsterInstance.get()
        # Dagster creates a pool on first use. On PostgreSQL two runs that do so at the same time fail.
        for pool in POOLS - opened.event_log_storage.get_concurrency_keys():
            opened.event_log_storage.initialize_concurrency_limit_to_default(pool)
        _set_pool_limits(opened, {str(pool): limit for pool, limit in read_deployment().runs.pools.items()})
    with opened as instance:
        fail_dead_runs(instance)
        yield instance


def _set_pool_limits(instance: dg.DagsterInstance, limits: Mapping[str, int]) -> None:
    """Give the pools that deployment.yaml names their limits. Other pools keep theirs."""
    storage = instance.event_log_storage
    for info in storage.get_concurrency_infos(sorted(limits)).values() if limits else ():
        if info.slot_count != limits[info.concurrency_key]:
            storage.set_concurrency_slots(info.concurrency_key, limits[info.concurrency_key])
