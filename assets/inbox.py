"""The sensor that takes new prompts from a task's inbox. It calls no teacher itself."""

from pathlib import Path

import dagster as dg

from assets.sensors import INTERVAL_S
from assets.task_graph import TaskGraph
from distill_dagster.core.errors import DistillError
from distill_dagster.intake.inbox import QUIET_S, InboxSummary, process_inbox
from distill_dagster.intake.logged_prompts import take_logged_requests
from distill_dagster.orchestration.tags import DATA_VERSION_TAG
from distill_dagster.pipeline.served_traffic import read_shadow_shares
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.stage_table import get_slices_partitions_name
from distill_dagster.tasks import TaskFolder
from resources.storage import LakeResource, TaskFoldersResource

LOCK_S, LIMIT_S = 5.0, 30.0
"""Dagster allows a sensor one minute. Files that are left over wait for the next tick."""


def build_inbox_sensor(graph: TaskGraph) -> dg.SensorDefinition:
    """Build the sensor. Like the others it is on from the start only if asking the teacher is free."""

    @dg.sensor(
        name=f"{graph.identifier}_inbox",
        minimum_interval_seconds=INTERVAL_S,
        default_status=graph.sensor_status,
        description=(
            f"Takes new prompts from inbox/{graph.name}/*.jsonl when a file has not changed for {QUIET_S} s, and "
            "from the log of served requests, masks them and sorts them into slices. It asks no teacher; the "
            f"automation sensor does.{graph.stopped}"
        ),
    )
    def _inbox(
        context: dg.SensorEvaluationContext,
        tasks: dg.ResourceParam[TaskFoldersResource],
        lake: dg.ResourceParam[LakeResource],
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            folder, inbox = tasks.open(graph.name), tasks.get_inbox_folder(graph.name)
            summaries = process_inbox(folder, inbox, lock_s=LOCK_S, limit_s=LIMIT_S)
            log, shares = tasks.get_log_folder(graph.name), read_shadow_shares(Path(lake.releases), graph.name)
            served = take_logged_requests(folder, inbox, log, shares, lock_s=LOCK_S)
            summaries += [served] if served is not None else []
            for summary in summaries:
                context.log.info(str(summary))
            return _build_result(graph, folder, context.instance, summaries)
        except DistillError as error:
            return dg.SkipReason(str(error)[:2000])

    return _inbox


def _build_result(
    graph: TaskGraph, folder: TaskFolder, instance: dg.DagsterInstance, summaries: list[InboxSummary]
) -> dg.SensorResult | dg.SkipReason:
    """Add new slices as partitions and report an observation for each slice that grew."""
    text = "; ".join(str(summary) for summary in summaries)[:2000]
    grown = sorted({key for summary in summaries for key in summary.accepted})
    if not grown:
        return dg.SkipReason(text or "Nothing in the inbox.")
    name = get_slices_partitions_name(graph.name)
    known = set(instance.get_dynamic_partitions(name))
    new = [key for key in grown if key not in known]
    observed = [
        dg.AssetObservation(
            graph.key("slice_files"),
            partition=key,
            metadata={"from the inbox": sum(summary.accepted.get(key, 0) for summary in summaries)},
            tags={DATA_VERSION_TAG: compute_source_version(folder, "slice_files", key)},
        )
        for key in grown
    ]
    return dg.SensorResult(
        asset_events=observed,
        dynamic_partitions_requests=[dg.AddDynamicPartitionsRequest(name, new)] if new else [],
    )
