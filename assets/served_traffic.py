"""The check whether served requests still are what the current release was calibrated for, and its sensor."""

from pathlib import Path

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets.stage_asset import to_failure
from assets.task_graph import TaskGraph
from distill_dagster.core.errors import DistillError
from distill_dagster.intake.request_log import LOG_PATTERN
from distill_dagster.pipeline.served_traffic import measure_traffic_drift
from resources.storage import LakeResource, ModelFolderResource, TaskFoldersResource

CHECK_NAME = "traffic_as_before"
INTERVAL_S = 3600


def build_traffic_definitions(graph: TaskGraph) -> dg.Definitions:
    """Build the check of the asset release, the job that runs it alone, and the sensor that starts the job."""
    check = _build_check(graph)
    job = dg.define_asset_job(
        f"{graph.identifier}_traffic",
        selection=dg.AssetSelection.checks(check),
        description="Compares served requests with what the current release was calibrated for and trained on.",
    )
    return dg.Definitions(asset_checks=[check], jobs=[job], sensors=[_build_sensor(graph, job)])


def _build_check(graph: TaskGraph) -> dg.AssetChecksDefinition:
    @dg.asset_check(
        asset=graph.key("release"),
        name=CHECK_NAME,
        description="Served requests are like those that the current release was calibrated for: the student keeps "
        "the same share, agrees with the teacher on shadowed requests, and knows texts like them. A failure says to "
        "refresh.",
        required_resource_keys={"tasks", "lake", "models"},
    )
    def _check(context: dg.AssetCheckExecutionContext) -> dg.AssetCheckResult:
        tasks: TaskFoldersResource = context.resources.tasks
        lake: LakeResource = context.resources.lake
        models: ModelFolderResource = context.resources.models
        try:
            drift = measure_traffic_drift(
                tasks.open(graph.name),
                lake.open_lake(),
                Path(models.path),
                tasks.get_log_folder(graph.name),
                Path(lake.releases),
            )
        except DistillError as error:
            raise to_failure(error) from None
        if drift is None:
            return dg.AssetCheckResult(passed=True, description="Nothing is released yet.")
        shown = {name: value for name, value in drift.to_dict().items() if value is not None and name != "reasons"}
        return dg.AssetCheckResult(
            passed=not drift.has_drifted,
            severity=dg.AssetCheckSeverity.WARN,
            description=drift.describe(graph.name),
            metadata=shown,
        )

    return _check


def _build_sensor(graph: TaskGraph, job: UnresolvedAssetJobDefinition) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{graph.identifier}_traffic_sensor",
        job=job,
        minimum_interval_seconds=INTERVAL_S,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Looks every hour whether requests were served, and checks then whether it is time to refresh. It "
        "asks no teacher.",
    )
    def _sensor(
        context: dg.SensorEvaluationContext, tasks: dg.ResourceParam[TaskFoldersResource]
    ) -> dg.SensorResult | dg.SkipReason:
        files = sorted(tasks.get_log_folder(graph.name).glob(LOG_PATTERN))
        seen = ",".join(f"{path.name}:{path.stat().st_size}" for path in files)
        if not files or seen == context.cursor:
            return dg.SkipReason("No request was served since the last check.")
        return dg.SensorResult(run_requests=[dg.RunRequest()], cursor=seen)

    return _sensor
