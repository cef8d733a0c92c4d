"""The assets seed_only_adapter, student_adapter and, if all slices are named like labels, slice_label_adapter."""

from __future__ import annotations

import dagster as dg

from assets.stage_asset import build_stage_asset
from assets.task_graph import TaskGraph
from distill_dagster.pipeline.stages.students import (
    make_seed_only_adapter,
    make_slice_label_adapter,
    make_student_adapter,
)

POOL = "training"


def build_assets(graph: TaskGraph) -> list[dg.AssetsDefinition]:
    assets = [
        build_stage_asset(graph, "seed_only_adapter", make_seed_only_adapter, pool=POOL),
        build_stage_asset(graph, "student_adapter", make_student_adapter, pool=POOL),
    ]
    if "slice_label_adapter" in graph.stages:
        assets.append(build_stage_asset(graph, "slice_label_adapter", make_slice_label_adapter, pool=POOL))
    return assets
