"""The assets seed_prompts and prompt_context."""

from __future__ import annotations

import dagster as dg

from assets.stage_asset import build_stage_asset
from assets.task_graph import TaskGraph
from distill_dagster.pipeline.stages.prompts import make_prompt_context, make_seed_prompts
from distill_dagster.tables.schemas import PROMPT_CONTEXT, PROMPTS

_SEEDS = {"messages": [("slice_files", "seeds")], "prompt_id": [("slice_files", "seeds")]}
POOL = "teacher"


def build_assets(graph: TaskGraph) -> list[dg.AssetsDefinition]:
    context = {name: [("human_examples", name)] for name in PROMPT_CONTEXT if name != "removed"}
    return [
        build_stage_asset(graph, "prompt_context", make_prompt_context, schema=PROMPT_CONTEXT, lineage=context),
        build_stage_asset(
            graph,
            "seed_prompts",
            make_seed_prompts,
            schema=PROMPTS,
            lineage=_SEEDS,
            pool=POOL if graph.has_source("imagine_settings") else None,
        ),
    ]
