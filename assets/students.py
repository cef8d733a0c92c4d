"""The assets that train: seed_only_adapter, student_adapter and, for some tasks, assistants and slice_label_adapter."""

from __future__ import annotations

import dagster as dg

from assets.stage_asset import build_stage_asset
from assets.task_graph import TaskGraph
from distill_dagster.pipeline.stages.assistants import make_assistant_labels
from distill_dagster.pipeline.stages.students import (
    make_assistant_adapter,
    make_seed_only_adapter,
    make_slice_label_adapter,
    make_student_adapter,
)
from distill_dagster.tables.schemas import DATASET

POOL = "training"
_KEPT = ("prompt_id", "slice", "origin", "messages", "weight", "split")
_ANSWERED = {name: [("filtered_dataset", name)] for name in _KEPT}


def build_assets(graph: TaskGraph) -> list[dg.AssetsDefinition]:
    assets = [
        build_stage_asset(graph, "seed_only_adapter", make_seed_only_adapter, pool=POOL),
        build_stage_asset(graph, "student_adapter", make_student_adapter, pool=POOL),
    ]
    if "assistant_adapter" in graph.stages:
        assets += [
            build_stage_asset(graph, "assistant_adapter", make_assistant_adapter, pool=POOL),
            build_stage_asset(
                graph, "assistant_labels", make_assistant_labels, schema=DATASET, lineage=_ANSWERED, pool=POOL
            ),
        ]
    if "slice_label_adapter" in graph.stages:
        assets.append(build_stage_asset(graph, "slice_label_adapter", make_slice_label_adapter, pool=POOL))
    return assets
