"""Select the prompts of a cascade that go on to the next teacher."""

from __future__ import annotations

import polars as pl

from distill_dagster.config import CascadeSpec, Task
from distill_dagster.curation.candidates.choose import choose_candidates
from distill_dagster.curation.candidates.priors import build_uniform_prior


def find_unsure_prompts(
    task: Task, cascade: CascadeSpec, prompts: pl.DataFrame, completions: pl.DataFrame
) -> pl.DataFrame:
    """Find the prompts on which a teacher is unsure: its samples disagree, its confidence is low, or it has no answer.

    Args:
        task: the task as if this teacher were its only one.
    """
    prior = build_uniform_prior(task.label_names, task.teacher.requests_per_prompt)
    candidates = choose_candidates(task, prompts, completions, prior)
    sure = candidates.filter(
        pl.col("answer").is_not_null()
        & (pl.col("status") == "ok")
        & (pl.col("agreement") >= cascade.min_agreement)
        & (pl.col("confidence") >= cascade.min_confidence)
    )
    return prompts.join(sure.select("prompt_id"), on="prompt_id", how="anti", maintain_order="left")
