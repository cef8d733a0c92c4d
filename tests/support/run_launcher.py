"""A Dagster run launcher that executes each run at once, in the process that submits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster._core.definitions.job_base import InMemoryJob
from dagster._core.execution.api import execute_run
from dagster._core.launcher import LaunchRunContext, RunLauncher
from dagster._serdes import ConfigurableClass
from dagster._serdes.config_class import ConfigurableClassData

from distill_dagster.core.paths import Home
from distill_dagster.definitions import build_definitions

INSTANCE = {
    "run_coordinator": {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"},
    "run_launcher": {"module": __name__, "class": "ImmediateRunLauncher"},
    "telemetry": {"enabled": False},
}
"""The dagster.yaml of an instance with this launcher and without a queue."""


class ImmediateRunLauncher(RunLauncher, ConfigurableClass):
    """Loads the tasks anew for each run, as a process of its own would."""

    def __init__(self, inst_data: ConfigurableClassData | None = None) -> None:
        self._inst_data = inst_data
        super().__init__()

    @property
    def inst_data(self) -> ConfigurableClassData | None:
        return self._inst_data

    @classmethod
    def config_type(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData, config_value: Mapping[str, Any]
    ) -> ImmediateRunLauncher:
        return cls(inst_data)

    def launch_run(self, context: LaunchRunContext) -> None:
        run = context.dagster_run
        job = build_definitions(Home.from_env()).resolve_job_def(run.job_name)
        execute_run(InMemoryJob(job.get_subset(asset_selection=run.asset_selection)), run, self._instance)

    def terminate(self, run_id: str) -> bool:
        return False
