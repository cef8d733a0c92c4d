"""The providers' terms of every model that a task asks."""

from __future__ import annotations

from typing import Any

from distill_dagster.config import Task
from distill_dagster.teacher.providers.terms import find_terms


def list_model_terms(task: Task) -> list[dict[str, Any]]:
    """The terms of every teacher, of an imaginer of its own and of a judge, each as reports show it."""
    terms = [find_terms(teacher).to_json() for teacher in task.teacher_specs]
    if task.imagine is not None and task.imagine.teacher is not None:
        terms.append(find_terms(task.imagine.teacher.to_teacher_spec(task.teacher)).to_json("imaginer"))
    if task.judge is not None:
        terms.append(find_terms(task.judge.to_teacher_spec(task.teacher)).to_json("judge"))
    return terms
