"""The assets predictions, eval_report and, for tasks whose judge compares answers, judged_pairs."""

from __future__ import annotations

import dagster as dg

from assets.stage_asset import build_stage_asset
from assets.task_graph import TaskGraph
from distill_dagster.pipeline.stages.eval_report import make_eval_report
from distill_dagster.pipeline.stages.judged_pairs import make_judged_pairs
from distill_dagster.pipeline.stages.predictions import make_predictions
from distill_dagster.tables.schemas import JUDGED_PAIRS, PREDICTIONS

_PREDICTED = {
    "item_id": [("golden_set", "id")],
    "slice": [("golden_set", "slice")],
    "reference": [("golden_set", "label")],
    "answer": [("golden_set", "text"), ("golden_completions", "soft_labels"), ("teacher_prior", "prob")],
}

_COMPARED = {
    "item_id": [("predictions", "item_id")],
    "slice": [("predictions", "slice")],
    "winner": [("golden_set", "text"), ("predictions", "answer")],
}


def build_assets(graph: TaskGraph) -> list[dg.AssetsDefinition]:
    assets = [
        build_stage_asset(
            graph, "predictions", make_predictions, schema=PREDICTIONS, lineage=_PREDICTED, pool="training"
        ),
        build_stage_asset(graph, "eval_report", make_eval_report),
    ]
    if "judged_pairs" in graph.stages:
        assets.append(
            build_stage_asset(
                graph, "judged_pairs", make_judged_pairs, schema=JUDGED_PAIRS, lineage=_COMPARED, pool="teacher"
            )
        )
    return assets
