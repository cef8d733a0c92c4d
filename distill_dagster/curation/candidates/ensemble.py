"""Combine the candidates of several teachers into one per prompt."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.kinds import Kind, get_kind
from distill_dagster.tables.schemas import SCORED, build_frame


def combine_teachers(task: Task, prompts: pl.DataFrame, by_teacher: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Choose one teacher's candidate per prompt.

    In a cascade, the last teacher that answered decides. Otherwise the answer of most teachers wins, under the kind's
    equality, and on a tie the answer of the last of these teachers. `teacher_agreement` is the share of the asked
    teachers that gave this answer; a teacher without an answer agrees with none.

    Args:
        by_teacher: the candidates of each teacher (schema SCORED), in the order of the task.
    """
    kind = get_kind(task)
    by_prompt: dict[str, list[dict[str, Any]]] = {prompt_id: [] for prompt_id in prompts["prompt_id"]}
    for frame in by_teacher.values():
        for row in frame.iter_rows(named=True):
            by_prompt[row["prompt_id"]].append(row)
    rows = [_combine_rows(kind, rows, is_cascade=task.cascade is not None) for rows in by_prompt.values()]
    return build_frame(rows, SCORED, ("prompt_id",))


def _combine_rows(kind: Kind, rows: list[dict[str, Any]], is_cascade: bool) -> dict[str, Any]:
    """One row from the rows of all teachers for a prompt."""
    completion_ids = [completion_id for row in rows for completion_id in row["completion_ids"] or []] or None
    usable = [row for row in rows if row["status"] == "ok" and row["answer"] is not None]
    asked = [row for row in rows if row["status"] is not None]
    if not usable:
        return (asked or rows)[-1] | {"completion_ids": completion_ids}
    answers = [json.loads(row["answer"]) for row in usable]
    votes = [sum(kind.are_equal(answer, other) for other in answers) for answer in answers]
    best = len(usable) - 1 if is_cascade else max(range(len(usable)), key=lambda place: (votes[place], place))
    combined = usable[best] | {
        "completion_ids": completion_ids,
        "error": None,
        "teacher_agreement": round(votes[best] / len(asked), 6),
    }
    if kind.has_labels and not is_cascade:
        combined |= _average_soft_labels(usable, answers[best])
    return combined


def _average_soft_labels(rows: list[dict[str, Any]], answer: Any) -> dict[str, Any]:
    """The mean of the teachers' soft labels and the answer's share of it; nothing if a teacher has no soft labels."""
    if any(not row["soft_labels"] for row in rows):
        return {}
    mean: dict[str, float] = {}
    for row in rows:
        for entry in row["soft_labels"]:
            mean[entry["label"]] = mean.get(entry["label"], 0.0) + entry["prob"] / len(rows)
    ranked = sorted(mean.items(), key=lambda item: (-item[1], item[0]))
    soft_labels = [{"label": label, "prob": round(prob, 6)} for label, prob in ranked if round(prob, 6) > 0]
    return {"soft_labels": soft_labels, "confidence": round(mean.get(answer, 0.0), 6)}
