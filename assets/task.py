"""All assets of one task."""

from __future__ import annotations

import dagster as dg

from assets import curation, evaluation, prompts, students, teacher
from assets.common import TaskGraph, source_assets
from assets.inbox import inbox_sensor
from assets.sensors import sensors
from distill_dagster.errors import InputError
from distill_dagster.graph import stages_of
from distill_dagster.sources import slices_are_labels
from distill_dagster.taskfiles import TaskFolder


def task_graph(folder: TaskFolder) -> TaskGraph:
    """The outline of a task. A malformed task.yaml still gives its graph: its assets then fail with the message."""
    try:
        task = folder.task
        return TaskGraph(folder.name, stages_of(slices_are_labels(folder)), list(task.students), task.owners)
    except InputError:
        return TaskGraph(folder.name, stages_of(False), [], [])


def _teacher_is_free(folder: TaskFolder) -> bool:
    try:
        return folder.task.teacher.embedded
    except InputError:
        return False


def task_definitions(folder: TaskFolder) -> dg.Definitions:
    graph, free = task_graph(folder), _teacher_is_free(folder)
    made = [module.assets(graph) for module in (prompts, teacher, curation, students, evaluation)]
    return dg.Definitions(
        assets=[*source_assets(graph), *(asset for group in made for asset in group)],
        jobs=[
            dg.define_asset_job(
                f"{graph.identifier}_slices",
                selection=[graph.key(n) for n, s in graph.stages.items() if s.partition == "slice"],
                description="seed_prompts to scored_completions of one slice.",
            )
        ],
        sensors=[*sensors(graph, free), inbox_sensor(graph, free)],
    )
