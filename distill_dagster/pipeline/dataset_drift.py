"""How far the dataset has moved on since a student was trained on it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from distill_dagster.tables.lake import Lake
from distill_dagster.tables.schemas import DATASET

if TYPE_CHECKING:
    from distill_dagster.student.types import TrainRow

TRAINED_ON = "trained_on.parquet"
"""Beside the adapter: what it was trained on. Not part of the adapter's hash."""
_SCHEMA = pl.Schema({"prompt_id": pl.String, "answer": pl.String, "weight": pl.Float64})


def format_plain_answer(answer: str) -> str:
    """An answer (canonical JSON text) as one text: a label or text as it is, any other as JSON."""
    value = json.loads(answer)
    return value if isinstance(value, str) else answer


def write_trained_on(folder: Path, rows: Iterable[TrainRow]) -> None:
    values = [(row.prompt_id, row.answer_label, row.weight) for row in rows]
    pl.DataFrame(values, schema=_SCHEMA, orient="row").write_parquet(folder / TRAINED_ON)


def count_changed_rows(lake: Lake, task: str, student: str) -> int | None:
    """Training rows of today's dataset that the student never saw, and those it saw that are gone.

    A row with another answer or another weight counts twice: one came, one went. None where it is not known what the
    student was trained on, or where there is no dataset.
    """
    path = lake.folder(task, "student_adapter", student) / TRAINED_ON
    if not path.exists() or lake.record(task, "filtered_dataset") is None:
        return None
    seen = set(pl.read_parquet(path, schema=_SCHEMA).iter_rows())
    dataset, _ = lake.read(task, "filtered_dataset", None, DATASET)
    train = dataset.filter(pl.col("split") == "train").select("prompt_id", "answer", "weight")
    now = {(id_, format_plain_answer(answer), weight) for id_, answer, weight in train.iter_rows()}
    return len(seen ^ now)
