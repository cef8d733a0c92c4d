"""All definitions of one task: assets, jobs, sensors and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import dagster as dg
from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

from assets import curation, evaluation, prompts, release, students, teacher
from assets.inbox import build_inbox_sensor
from assets.provider_batches import build_batches_sensor
from assets.refresh import Refresh, build_refresh_definitions
from assets.sensors import build_sensors
from assets.served_traffic import build_traffic_definitions
from assets.stage_asset import build_source_assets
from assets.task_graph import TaskGraph
from distill_dagster.config import RefreshSpec
from distill_dagster.config.deployment import JobKind
from distill_dagster.core.errors import InputError
from distill_dagster.pipeline.source_versions import list_features
from distill_dagster.pipeline.stage_table import Partition, Stage, get_job_name, get_stage_job_name, list_stages
from distill_dagster.tasks import TaskFolder

JOBS: dict[Partition, str] = {
    None: "What all slices and students share: the measured teacher and the filtered dataset.",
    "slice": "seed_prompts to scored_completions of one slice.",
    "student": "One student: training, predictions and report.",
    "assistant": "One student that teaches another one: training, and its answers to the filtered dataset.",
}
"""The jobs of a task, by what their assets are partitioned by. The UI shows the runs of `distill` under them."""
JOB_KINDS: dict[Partition, JobKind] = {
    None: "shared",
    "slice": "slices",
    "student": "students",
    "assistant": "assistants",
}
RunTags = Mapping[JobKind, Mapping[str, Any]]
"""Tags of runs by kind of job."""


def _get_tags(tags: RunTags, partition: Partition) -> Mapping[str, Any]:
    return tags.get(JOB_KINDS[partition], {})


def _build_job(graph: TaskGraph, partition: Partition, tags: RunTags) -> UnresolvedAssetJobDefinition:
    names = [name for name, one in graph.stages.items() if one.partition == partition and not one.is_explicit]
    return dg.define_asset_job(
        get_job_name(graph.identifier, partition),
        selection=[graph.key(name) for name in names],
        description=JOBS[partition],
        tags=_get_tags(tags, partition),
    )


def _build_explicit_job(graph: TaskGraph, stage: Stage, tags: RunTags) -> UnresolvedAssetJobDefinition:
    """The job of a stage that only a command of its own runs, so that no other job runs it by accident."""
    return dg.define_asset_job(
        get_stage_job_name(graph.identifier, stage),
        selection=[graph.key(stage.name)],
        description=stage.description,
        tags=_get_tags(tags, stage.partition),
    )


def build_task_graph(folder: TaskFolder) -> TaskGraph:
    """Build the graph of a task. A malformed task.yaml still gives a graph, whose assets fail with the message."""
    try:
        task = folder.task
        stages = list_stages(list_features(folder))
        return TaskGraph(
            folder.name, stages, list(task.students), task.owners, task.is_free, tuple(task.list_assistants())
        )
    except InputError:
        return TaskGraph(folder.name, list_stages(), [], [], False)


def build_task_definitions(
    folder: TaskFolder, refresh: Refresh, tags: RunTags = MappingProxyType({})
) -> dg.Definitions:
    """Build the definitions of a task. What could call a paid teacher automatically is off until a person starts it.

    Args:
        refresh: The function that the schedule's job calls.
        tags: Tags of the runs of each kind of job, which run launcher and queue read.
    """
    graph = build_task_graph(folder)
    try:
        spec, has_batches = folder.task.refresh, any(teacher.mode == "batch" for teacher in folder.task.teacher_specs)
    except InputError:
        spec, has_batches = RefreshSpec(cron=None), False
    groups = [module.build_assets(graph) for module in (prompts, teacher, curation, students, evaluation, release)]
    definitions = dg.Definitions(
        assets=[*build_source_assets(graph), *(asset for group in groups for asset in group)],
        jobs=[
            *(_build_job(graph, partition, tags) for partition in JOBS if graph.has_partition(partition)),
            *(_build_explicit_job(graph, stage, tags) for stage in graph.stages.values() if stage.is_explicit),
        ],
        sensors=[
            *build_sensors(graph),
            build_inbox_sensor(graph),
            *([build_batches_sensor(graph)] if has_batches else []),
        ],
    )
    return dg.Definitions.merge(
        definitions, build_refresh_definitions(graph, spec, refresh), build_traffic_definitions(graph)
    )
