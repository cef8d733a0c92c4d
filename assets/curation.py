"""The assets filtered_dataset and, if students need them, preference_pairs and replay_rows."""

from __future__ import annotations

import dagster as dg

from assets.stage_asset import build_stage_asset
from assets.task_graph import TaskGraph
from distill_dagster.pipeline.stages.dataset import make_filtered_dataset
from distill_dagster.pipeline.stages.preference_pairs import make_preference_pairs
from distill_dagster.pipeline.stages.replay_rows import make_replay_rows
from distill_dagster.tables.schemas import DATASET, PREFERENCE_PAIRS, REPLAY_ROWS

_KEPT = ("prompt_id", "slice", "origin", "messages", "answer", "reasoning", "soft_labels", "teacher", "completion_ids")
_LINEAGE = {name: [("scored_completions", name)] for name in _KEPT}


def build_assets(graph: TaskGraph) -> list[dg.AssetsDefinition]:
    assets = [build_stage_asset(graph, "filtered_dataset", make_filtered_dataset, schema=DATASET, lineage=_LINEAGE)]
    if "preference_pairs" in graph.stages:
        assets.append(
            build_stage_asset(
                graph,
                "preference_pairs",
                make_preference_pairs,
                schema=PREFERENCE_PAIRS,
                lineage={
                    **{name: [("filtered_dataset", name)] for name in ("prompt_id", "slice", "messages", "teacher")},
                    **{name: [("filtered_dataset", name)] for name in ("answer", "reasoning")},
                    "rejected_answer": [("teacher_completions", "answer")],
                    "rejected_reasoning": [("teacher_completions", "reasoning")],
                    "rejected_teacher": [("teacher_completions", "teacher")],
                    "rejected_completion_id": [("teacher_completions", "completion_id")],
                },
            )
        )
    if "replay_rows" in graph.stages:
        rows = {name: [("filtered_dataset", name)] for name in DATASET}
        assets.append(build_stage_asset(graph, "replay_rows", make_replay_rows, schema=REPLAY_ROWS, lineage=rows))
    return assets
