"""The words with which a response refuses to answer."""

from __future__ import annotations

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds.refusals import REFUSAL_ANYWHERE


def _find_refusals(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    plain = pl.col("written").str.replace_all("’", "'", literal=True)
    return rows.select(plain.str.extract(f"({REFUSAL_ANYWHERE})", 1).alias("refusal"))


REFUSAL_SCORER = Scorer("refusal", "1", ("refusal",), _find_refusals)
