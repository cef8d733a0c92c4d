"""Dagster's webserver with two more folders: `/reports` and `/data-docs`, so that the UI can link to a report.

It also shows the backfills of a job, whose page Dagster's own webserver cannot make if they have a run per partition.
`distill ui` starts it as `python -m distill_dagster.orchestration.webserver`, with the options of `dagster-webserver`.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import dagster as dg
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.remote_representation.external import RemotePartitionSet
from dagster._core.storage.dagster_run import RunPartitionData
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARTITION_NAME_TAG,
)
from dagster._core.workspace.context import BaseWorkspaceRequestContext, IWorkspaceProcessContext
from dagster_graphql.schema.backfill import GraphenePartitionBackfill
from dagster_webserver import cli
from dagster_webserver.webserver import DagsterWebserver
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import DATA_DOCS_URL, REPORTS_URL, Home
from distill_dagster.core.redaction import redact
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.tables.lake import Lake

SLUG_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")

# Reports quote texts of users and models. They are escaped; should one get through, it can reach nothing from here.
_POLICY = (
    "sandbox allow-popups allow-scripts; default-src 'none'; img-src data:; font-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)


class PageFiles(StaticFiles):
    """Serves a folder of HTML pages that may not load or call anything."""

    async def get_response(self, path: str, scope: Any) -> Response:
        response = await super().get_response(path, scope)
        response.headers["Content-Security-Policy"] = _POLICY
        response.headers["Cache-Control"] = "no-cache"
        return response


class ReportFiles(PageFiles):
    """Serves reports as they are in the lake: another machine may have made them."""

    def __init__(self, lake: Lake, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)  # a machine that only shows reports made none
        super().__init__(directory=folder, html=True)
        self._lake = lake

    async def get_response(self, path: str, scope: Any) -> Response:
        task, _, rest = path.partition("/")
        student, _, page = rest.partition("/")
        if page and all(SLUG_PATTERN.fullmatch(name) for name in (task, student)):
            try:
                await run_in_threadpool(self._lake.refresh_reports, task, [student])
            except DistillError as error:  # what is here is shown
                logging.getLogger(__name__).warning("%s", redact(str(error)))
        return await super().get_response(path, scope)


class Webserver(DagsterWebserver[IWorkspaceProcessContext, BaseWorkspaceRequestContext]):
    """Dagster's webserver, which serves the reports and the Data Docs of the home folder too."""

    def build_routes(self) -> list[BaseRoute]:
        home = Home.from_env()
        reports = Mount(REPORTS_URL, ReportFiles(open_lake(home), home.reports))
        data_docs = Mount(DATA_DOCS_URL, PageFiles(directory=home.data_docs, html=True, check_dir=False))
        return [reports, data_docs, *super().build_routes()]


def _create_app(
    workspace_process_context: IWorkspaceProcessContext,
    path_prefix: str = "",
    live_data_poll_rate: int | None = None,
    **kwargs: Any,
) -> Starlette:
    return Webserver(workspace_process_context, path_prefix, live_data_poll_rate).create_asgi_app(**kwargs)


def _list_partition_runs(
    self: GraphenePartitionBackfill, instance: dg.DagsterInstance, partition_set: RemotePartitionSet
) -> list[RunPartitionData]:
    """List the runs of a job's backfill by partition.

    Dagster's method expects a range in each run and raises KeyError otherwise, but `dagster job backfill` starts runs
    for single partitions.
    """
    partitions = partition_set.get_partitions_definition()
    tags = dg.DagsterRun.tags_for_backfill_id(self._backfill_job.backfill_id)
    runs = []
    with partition_loading_context(dynamic_partitions_store=instance):
        for record in instance.get_run_records(dg.RunsFilter(tags=tags)):
            run = record.dagster_run
            first = run.tags.get(ASSET_PARTITION_RANGE_START_TAG, run.tags.get(PARTITION_NAME_TAG))
            if first is None:
                continue
            last = run.tags.get(ASSET_PARTITION_RANGE_END_TAG, first)
            runs += [
                RunPartitionData(
                    run_id=run.run_id,
                    partition=key,
                    status=run.status,
                    start_time=record.start_time,
                    end_time=record.end_time,
                )
                for key in partitions.get_partition_keys_in_range(dg.PartitionKeyRange(first, last))
            ]
    return runs


def run_webserver() -> None:
    """Run Dagster's command with this app and this method: it has no option for either."""
    cli.create_app_from_workspace_process_context = _create_app
    GraphenePartitionBackfill._get_partition_run_data_for_ranged_job_backfill = _list_partition_runs  # type: ignore[method-assign]
    cli.main()


if __name__ == "__main__":
    run_webserver()
