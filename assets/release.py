"""The asset release. Only `distill release`, or a person in the UI, makes it."""

from __future__ import annotations

import dagster as dg

from assets.stage_asset import build_stage_asset
from assets.task_graph import TaskGraph
from distill_dagster.pipeline.stages.release import make_release
from distill_dagster.tables.schemas import RELEASED_EXPORTS


def build_assets(graph: TaskGraph) -> list[dg.AssetsDefinition]:
    return [build_stage_asset(graph, "release", make_release, schema=RELEASED_EXPORTS, pool="training")]
