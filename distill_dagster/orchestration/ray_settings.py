"""What a Ray cluster changes in Dagster's instance."""

from __future__ import annotations

import importlib.util
from typing import Any

from distill_dagster.config.deployment import RayResourcesSpec, RaySpec
from distill_dagster.core.errors import DistillError
from distill_dagster.tasks.deployment_file import DEPLOYMENT_VARIABLE, LAKE_VARIABLE

JOB_VARIABLES = ["DISTILL_HOME", "DISTILL_TASKS", "DAGSTER_HOME", DEPLOYMENT_VARIABLE, LAKE_VARIABLE]
"""Environment variables of the process that starts a job, which the job gets too. Ray's dashboard shows them, so none
of them is a secret: keys and the URLs of databases are set where the workers are started."""
POLL_S = 10
"""Seconds between two looks at the jobs of open runs."""
START_S = 3600
"""Seconds that a job may wait for a worker, which an autoscaler may have to start."""


def require_ray() -> None:
    """Check that the packages are installed.

    Raises:
        DistillError: They are not. It names the command.
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("dagster_ray") is None:
        raise DistillError(
            "deployment.yaml sends runs to a Ray cluster, which needs packages that are not installed. Run "
            "`pip install '.[ray]'`, or set `ray.runs` to false."
        )


def _build_resources(spec: RayResourcesSpec) -> dict[str, Any]:
    """Write what a run reserves as dagster-ray reads it."""
    resources: dict[str, Any] = {"num_cpus": spec.cpus}
    if spec.gpus:
        resources["num_gpus"] = spec.gpus
    if spec.memory_gb is not None:
        resources["memory"] = int(spec.memory_gb * 2**30)
    return resources


def build_instance_settings(spec: RaySpec) -> dict[str, Any]:
    """Build the sections of dagster.yaml that start each run of the queue as a job of the cluster.

    A run whose worker was lost is started again, and goes on where it was: finished steps are kept, and answers are in
    the store. A run that failed in a step is not.
    """
    config = {"address": spec.address, "env_vars": JOB_VARIABLES, **_build_resources(spec.run_resources)}
    return {
        "run_launcher": {
            "module": "distill_dagster.orchestration.ray_launcher",
            "class": "RayJobLauncher",
            "config": {"ray": config},
        },
        "run_retries": {
            "enabled": True,
            "max_retries": spec.lost_worker_retries,
            "retry_on_asset_or_op_failure": False,
        },
        "run_monitoring": {"poll_interval_seconds": POLL_S, "start_timeout_seconds": START_S},
    }
