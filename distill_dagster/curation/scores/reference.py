"""How close an answer is to the reference of its prompt, by the measure of the task's kind."""

from __future__ import annotations

import json

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds import WANTED_REFUSAL, is_refusal


def _score_references(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    comparable = rows.select(pl.col("reference").is_not_null() & pl.col("answer").is_not_null()).to_series()
    scores = [
        _compare_to_reference(answer, reference, task)
        for answer, reference in rows.filter(comparable).select("answer", "reference").iter_rows()
    ]
    empty = pl.Series("gold", [None] * rows.height, dtype=pl.Float64)
    gold = empty.scatter(comparable.arg_true(), pl.Series(scores, dtype=pl.Float64)) if scores else empty
    return gold.to_frame()


def _compare_to_reference(answer: str, reference: str, task: TaskView) -> float:
    if task.matcher is None or task.matcher.has_labels:  # the reference of a label is its plain name, not JSON
        return float(json.loads(answer) == reference)
    if reference == WANTED_REFUSAL:
        return float(is_refusal(json.loads(answer)))
    return round(task.matcher.score(json.loads(answer), json.loads(reference)), 4)


REFERENCE_SCORER = Scorer("gold", "2", ("gold",), _score_references)
