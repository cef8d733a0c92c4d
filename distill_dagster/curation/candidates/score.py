"""Score the samples of each prompt by the rule of the task's kind: one candidate per prompt."""

from __future__ import annotations

import polars as pl

from distill_dagster.config import Task
from distill_dagster.curation.candidates.label_answers import choose_label_candidates
from distill_dagster.kinds import get_kind


def choose_candidates(
    task: Task, prompts: pl.DataFrame, completions: pl.DataFrame, prior: pl.DataFrame
) -> pl.DataFrame:
    """One scored row per prompt, by the rule of the task's kind. The prior corrects soft labels of named labels.

    Where the task has several teachers, each one's own candidate is found first, and then that of them all.
    """
    if task.teachers:
        from distill_dagster.curation.candidates.ensemble import combine_teachers

        own = {
            name: choose_candidates(one, prompts, completions.filter(pl.col("teacher") == name), prior)
            for name, one in task.each_teacher()
        }
        return combine_teachers(task, prompts, own)
    if task.answers_are_written:
        from distill_dagster.curation.candidates.free_text import choose_free_text_candidates

        return choose_free_text_candidates(
            get_kind(task), prompts, completions, prior if task.teacher.votes_corrected else None
        )
    return choose_label_candidates(prompts, completions, prior, task.label_names, votes=task.teacher.votes_corrected)
