"""The Dagster code location: every task folder becomes one group of assets. Importing it loads no model library."""

from __future__ import annotations

import dagster as dg

from assets import build_task_definitions
from assets.alerts import build_alerts_sensor, build_task_folders_sensor
from assets.dead_runs import build_dead_runs_sensor
from assets.stage_asset import to_failure
from distill_dagster.core.database_urls import find_store_variable
from distill_dagster.core.errors import DistillError
from distill_dagster.core.openmp import limit_openmp_spin
from distill_dagster.core.paths import Home
from distill_dagster.orchestration import RunSummary, build_runner, refresh_task
from distill_dagster.orchestration.pool_waits import mend_pool_waits
from distill_dagster.orchestration.tags import read_budget_tags
from distill_dagster.pipeline.open_task import find_tasks, open_task
from distill_dagster.tasks.deployment_file import read_deployment
from resources.storage import CompletionStoreResource, LakeResource, ModelFolderResource, TaskFoldersResource
from resources.teacher import TeacherResource
from resources.workers import build_workers

limit_openmp_spin()
mend_pool_waits()


def build_definitions(home: Home) -> dg.Definitions:
    """Build the definitions of all tasks below `home.tasks`. They read and write the folders of `home`."""
    url, deployment = find_store_variable(), read_deployment()
    lake = deployment.lake
    resources = {
        "tasks": TaskFoldersResource(
            path=str(home.tasks), accepted=str(home.accepted), inbox=str(home.inbox), requests=str(home.requests)
        ),
        "lake": LakeResource(
            path=str(home.lake),
            reports=str(home.reports),
            training=str(home.training),
            releases=str(home.releases),
            url=lake.url or "",
            cache=str(home.lake_cache),
            cache_gb=lake.cache_gb,
        ),
        "store": CompletionStoreResource(path=str(home.store), url=dg.EnvVar(url) if url else ""),
        "models": ModelFolderResource(path=str(home.models)),
        "teacher": TeacherResource(models=str(home.models)),
        "workers": build_workers(deployment.ray),
    }
    folders = find_tasks(home.tasks, home.accepted)

    def refresh(context: dg.OpExecutionContext, task: str, force: bool) -> RunSummary:
        folder = open_task(home.tasks, task, home.accepted)
        # Build the definitions again: students or slices may have been added since the code location was loaded.
        try:
            cap = read_budget_tags(context.run.tags)
            runner = build_runner(home, folder, context.instance, build_definitions, context.run_id, cap)
            return refresh_task(runner, [], force, lambda event: context.log.info(str(event)))
        except DistillError as error:
            raise to_failure(error) from None

    tasks = [build_task_definitions(folder, refresh, deployment.runs.tags) for folder in folders]
    # One process per run: the steps of a run share the loaded libraries and the warm embedded server.
    sensors = [
        build_alerts_sensor(home.alerts),
        build_dead_runs_sensor(),
        build_task_folders_sensor(home.tasks, {folder.name for folder in folders}),
    ]
    shared = dg.Definitions(resources=resources, executor=dg.in_process_executor, sensors=sensors)
    return dg.Definitions.merge(shared, *tasks)


defs = build_definitions(Home.from_env())
