"""Several teachers: which of their answers stands for a prompt, and where the next one of a cascade is asked."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from distill_dagster.config import CascadeSpec, Task
from distill_dagster.curation.candidates.priors import build_uniform_prior
from distill_dagster.curation.candidates.score import choose_candidates
from distill_dagster.kinds import Kind, get_kind
from distill_dagster.tables.schemas import SCORED, build_frame


def combine_teachers(task: Task, prompts: pl.DataFrame, own: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """One scored row per prompt from each teacher's own candidates.

    In a cascade the last teacher that answered decides. Else the answer that most teachers gave wins, under the kind's
    equality, and of answers that equally many gave the one of the teacher who stands last. The row is that teacher's;
    `teacher_agreement` is the share of the teachers asked that gave its answer: one without an answer agrees to none.

    Args:
        own: scored candidates by teacher, in the order of the task.
    """
    kind = get_kind(task)
    by_prompt: dict[str, list[dict[str, Any]]] = {id_: [] for id_ in prompts["prompt_id"]}
    for frame in own.values():
        for row in frame.iter_rows(named=True):
            by_prompt[row["prompt_id"]].append(row)
    rows = [_combine_rows(kind, rows, cascade=task.cascade is not None) for rows in by_prompt.values()]
    return build_frame(rows, SCORED, ("prompt_id",))


def _combine_rows(kind: Kind, rows: list[dict[str, Any]], cascade: bool) -> dict[str, Any]:
    ids = [id_ for row in rows for id_ in row["completion_ids"] or []] or None
    usable = [row for row in rows if row["status"] == "ok" and row["answer"] is not None]
    asked = [row for row in rows if row["status"] is not None]
    if not usable:
        return (asked or rows)[-1] | {"completion_ids": ids}
    answers = [json.loads(row["answer"]) for row in usable]
    same = [sum(kind.are_equal(one, other) for other in answers) for one in answers]
    best = len(usable) - 1 if cascade else max(range(len(usable)), key=lambda n: (same[n], n))
    chosen = usable[best] | {
        "completion_ids": ids,
        "error": None,
        "teacher_agreement": round(same[best] / len(asked), 6),
    }
    if kind.has_labels and not cascade:
        chosen |= _average_soft_labels(usable, answers[best])
    return chosen


def _average_soft_labels(rows: list[dict[str, Any]], answer: Any) -> dict[str, Any]:
    """The mean of the teachers' soft labels, and what it gives the answer; nothing where a teacher has none."""
    if any(not row["soft_labels"] for row in rows):
        return {}
    mean: dict[str, float] = {}
    for row in rows:
        for one in row["soft_labels"]:
            mean[one["label"]] = mean.get(one["label"], 0.0) + one["prob"] / len(rows)
    ranked = sorted(mean.items(), key=lambda item: (-item[1], item[0]))
    soft = [{"label": label, "prob": round(prob, 6)} for label, prob in ranked if round(prob, 6) > 0]
    return {"soft_labels": soft, "confidence": round(mean.get(answer, 0.0), 6)}


def find_unsure_prompts(
    task: Task, cascade: CascadeSpec, prompts: pl.DataFrame, completions: pl.DataFrame
) -> pl.DataFrame:
    """The prompts of which one teacher is unsure: its samples disagree, it is not confident, or it gave no answer.

    Args:
        task: the task as if it had that teacher alone.
    """
    prior = build_uniform_prior(task.label_names, task.teacher.requests_per_prompt)
    found = choose_candidates(task, prompts, completions, prior)
    sure = found.filter(
        pl.col("answer").is_not_null()
        & (pl.col("status") == "ok")
        & (pl.col("agreement") >= cascade.min_agreement)
        & (pl.col("confidence") >= cascade.min_confidence)
    )
    return prompts.join(sure.select("prompt_id"), on="prompt_id", how="anti", maintain_order="left")
