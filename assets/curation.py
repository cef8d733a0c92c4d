"""The asset filtered_dataset."""

from __future__ import annotations

import dagster as dg

from assets.stage_asset import build_stage_asset
from assets.task_graph import TaskGraph
from distill_dagster.pipeline.stages.dataset import make_filtered_dataset
from distill_dagster.tables.schemas import DATASET

_KEPT = ("prompt_id", "slice", "origin", "messages", "answer", "reasoning", "soft_labels", "teacher", "completion_ids")
_LINEAGE = {name: [("scored_completions", name)] for name in _KEPT}


def build_assets(graph: TaskGraph) -> list[dg.AssetsDefinition]:
    return [build_stage_asset(graph, "filtered_dataset", make_filtered_dataset, schema=DATASET, lineage=_LINEAGE)]
