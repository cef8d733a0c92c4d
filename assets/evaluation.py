"""The assets predictions and eval_report."""

from __future__ import annotations

import dagster as dg

from assets.stage_asset import build_stage_asset
from assets.task_graph import TaskGraph
from distill_dagster.pipeline.stages.eval_report import make_eval_report
from distill_dagster.pipeline.stages.predictions import make_predictions
from distill_dagster.tables.schemas import PREDICTIONS

_PREDICTED = {
    "item_id": [("golden_set", "id")],
    "slice": [("golden_set", "slice")],
    "reference": [("golden_set", "label")],
    "answer": [("golden_set", "text"), ("golden_completions", "soft_labels"), ("teacher_prior", "prob")],
}


def build_assets(graph: TaskGraph) -> list[dg.AssetsDefinition]:
    return [
        build_stage_asset(
            graph, "predictions", make_predictions, schema=PREDICTIONS, lineage=_PREDICTED, pool="training"
        ),
        build_stage_asset(graph, "eval_report", make_eval_report),
    ]
