"""How good an answer is against the reference of its prompt, where there is one: the kind's own measure."""

from __future__ import annotations

import json

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds import WANTED_REFUSAL, is_refusal


def _score_gold(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    known = rows.select(pl.col("reference").is_not_null() & pl.col("answer").is_not_null()).to_series()
    found = [
        _compare_to_reference(answer, reference, about)
        for answer, reference in rows.filter(known).select("answer", "reference").iter_rows()
    ]
    empty = pl.Series("gold", [None] * rows.height, dtype=pl.Float64)
    gold = empty.scatter(known.arg_true(), pl.Series(found, dtype=pl.Float64)) if found else empty
    return gold.to_frame()


def _compare_to_reference(answer: str, reference: str, about: TaskView) -> float:
    if about.matcher is None or about.matcher.has_labels:  # the reference is the label as it is
        return float(json.loads(answer) == reference)
    if reference == WANTED_REFUSAL:
        return float(is_refusal(json.loads(answer)))
    return round(about.matcher.score(json.loads(answer), json.loads(reference)), 4)


GOLD_SCORER = Scorer("gold", "1", ("gold",), _score_gold)
