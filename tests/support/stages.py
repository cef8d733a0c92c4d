"""The functions of the stages by asset, for tests that run them one after the other."""

from __future__ import annotations

from collections.abc import Callable

from distill_dagster.pipeline.stages import dataset, gate, prompts, scores, teacher
from distill_dagster.pipeline.stages.context import StageContext, StageResult

StageFunction = Callable[[StageContext, str | None], StageResult]

DATA_STAGES: dict[str, StageFunction] = {
    "prompt_context": prompts.make_prompt_context,
    "teacher_prior": teacher.make_teacher_prior,
    "golden_completions": teacher.make_golden_completions,
    "teacher_gate": gate.make_teacher_gate,
    "seed_prompts": prompts.make_seed_prompts,
    "teacher_completions": teacher.make_teacher_completions,
    "scored_completions": scores.make_scored_completions,
    "filtered_dataset": dataset.make_filtered_dataset,
}
"""From files to dataset, in the order in which assets run."""
