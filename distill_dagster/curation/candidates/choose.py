"""Choose one candidate from the samples of each prompt, by the rule of the task's kind and of its teachers."""

from __future__ import annotations

import polars as pl

from distill_dagster.config import Task
from distill_dagster.curation.candidates.ensemble import combine_teachers
from distill_dagster.curation.candidates.free_text import choose_free_text_candidates
from distill_dagster.curation.candidates.label_answers import choose_label_candidates
from distill_dagster.kinds import get_kind
from distill_dagster.tables.schemas import SCORED, conform_to_schema


def choose_candidates(
    task: Task, prompts: pl.DataFrame, completions: pl.DataFrame, prior: pl.DataFrame
) -> pl.DataFrame:
    """Choose one candidate per prompt. If the task has several teachers, combine the candidates of each.

    Args:
        prompts: schema PROMPTS.
        completions: schema COMPLETIONS, all samples of all teachers.
        prior: schema TEACHER_PRIOR; corrects the soft labels or votes of label tasks.

    Returns:
        Schema SCORED, one row per prompt.
    """
    if task.teachers:
        by_teacher = {
            name: choose_candidates(view, prompts, completions.filter(pl.col("teacher") == name), prior)
            for name, view in task.list_teachers()
        }
        return combine_teachers(task, prompts, by_teacher)
    if task.has_written_answers:
        vote_prior = prior if task.teacher.has_corrected_votes else None
        return choose_free_text_candidates(get_kind(task), prompts, completions, vote_prior)
    return choose_label_candidates(
        prompts, completions, prior, task.label_names, correct_votes=task.teacher.has_corrected_votes
    )


def add_imagined_columns(candidates: pl.DataFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    """Add `axes` and `parent_prompt_id` of imagined prompts to the candidates. They are null for all other prompts."""
    imagined = prompts.filter(pl.col("origin") == "synthetic").select("prompt_id", "axes", "parent_prompt_id")
    joined = candidates.drop("axes", "parent_prompt_id").join(imagined, on="prompt_id", how="left")
    return conform_to_schema(joined, SCORED, ("prompt_id",))
