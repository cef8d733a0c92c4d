"""Select the prompts of a cascade that a recording knows. The others are the work of the next teacher."""

from __future__ import annotations

import polars as pl

from distill_dagster.config import Task
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.asking.asked_prompt import AskedPrompt, read_asked_prompts
from distill_dagster.teacher.providers.replay import load_replay_teacher


def select_known_prompts(folder: TaskFolder, name: str, prompts: pl.DataFrame) -> pl.DataFrame:
    """Select the prompts that the teacher `name` is asked, before anything is asked.

    A recording in a cascade that is not the last teacher is asked only the prompts that it knows. So a new prompt is no
    failed row of it, and does not count for its `min_success`. Every other teacher is asked all prompts.

    Args:
        prompts: schema PROMPTS.

    Raises:
        InputError: a recording is missing or malformed.
    """
    if not _may_pass_on(folder.task, name):
        return prompts
    recorded = load_replay_teacher(folder, folder.task.teachers[name])
    asked = read_asked_prompts(prompts, refusals=False)
    known = [id_ for id_, prompt in asked.items() if recorded.find(prompt.text)]
    return prompts.filter(pl.col("prompt_id").is_in(known))


def split_certain_prompts(
    folder: TaskFolder, name: str, prompts: list[AskedPrompt]
) -> tuple[list[AskedPrompt], list[AskedPrompt]]:
    """Split prompts, for an estimate, into those that the teacher `name` is asked, and those that the next may be.

    Only a recording in a cascade is known before it is asked: what it knows, with completions that are all equal, does
    not go on, unless `cascade.min_confidence` has to read them.
    """
    task = folder.task
    if task.cascade is None or not _may_pass_on(task, name):
        return prompts, prompts
    recorded = load_replay_teacher(folder, task.teachers[name])
    known, unsure = [], []
    for prompt in prompts:
        completions = {recording.completion for recording in recorded.find(prompt.text)}
        if completions:
            known.append(prompt)
        if len(completions) != 1 or task.cascade.min_confidence > 0:
            unsure.append(prompt)
    return known, unsure


def _may_pass_on(task: Task, name: str) -> bool:
    """Whether a teacher is a recording in a cascade with another teacher after it."""
    return task.cascade is not None and task.teachers[name].is_replay and name != list(task.teachers)[-1]
