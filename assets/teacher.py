"""The assets teacher_prior, golden_completions, teacher_gate, teacher_completions and scored_completions."""

from __future__ import annotations

import dagster as dg

from assets.stage_asset import build_stage_asset
from assets.task_graph import TaskGraph
from distill_dagster.pipeline.stages.gate import make_teacher_gate
from distill_dagster.pipeline.stages.scores import make_scored_completions
from distill_dagster.pipeline.stages.teacher import (
    make_golden_completions,
    make_teacher_completions,
    make_teacher_prior,
)
from distill_dagster.tables.schemas import COMPLETIONS, PREDICTIONS, SCORED, TEACHER_PRIOR

POOL = "teacher"
_EXAMPLES = [("prompt_context", "text"), ("prompt_context", "label")]
_PRIOR = {"prob": _EXAMPLES}
_GOLDEN = {"prompt_id": [("golden_set", "text")]} | {
    name: [("golden_set", "text"), *_EXAMPLES] for name in ("answer", "soft_labels", "request_key")
}
_GATE = {
    "reference": [("golden_set", "text")],
    "answer": [("golden_completions", "soft_labels"), ("teacher_prior", "prob")],
}
_ASKED = {name: [("seed_prompts", "messages"), *_EXAMPLES] for name in ("answer", "soft_labels", "request_key")} | {
    "prompt_id": [("seed_prompts", "prompt_id")],
    "slice": [("seed_prompts", "slice")],
}
_SCORED = {
    name: [("seed_prompts", name)] for name in ("prompt_id", "slice", "origin", "messages", "target_label", "reference")
} | {
    "answer": [("teacher_completions", "soft_labels"), ("teacher_prior", "prob")],
    "soft_labels": [("teacher_completions", "soft_labels"), ("teacher_prior", "prob")],
    "agreement": [("teacher_completions", "soft_labels")],
    "confidence": [("teacher_completions", "soft_labels")],
    "completion_ids": [("teacher_completions", "completion_id")],
}


def build_assets(graph: TaskGraph) -> list[dg.AssetsDefinition]:
    return [
        build_stage_asset(graph, "teacher_prior", make_teacher_prior, schema=TEACHER_PRIOR, lineage=_PRIOR, pool=POOL),
        build_stage_asset(
            graph, "golden_completions", make_golden_completions, schema=COMPLETIONS, lineage=_GOLDEN, pool=POOL
        ),
        # In the training pool because it loads a student's model.
        build_stage_asset(graph, "teacher_gate", make_teacher_gate, schema=PREDICTIONS, lineage=_GATE, pool="training"),
        build_stage_asset(
            graph, "teacher_completions", make_teacher_completions, schema=COMPLETIONS, lineage=_ASKED, pool=POOL
        ),
        build_stage_asset(
            graph,
            "scored_completions",
            make_scored_completions,
            schema=SCORED,
            lineage=_SCORED,
            pool=POOL if graph.has_source("judge_settings") else None,
        ),
    ]
