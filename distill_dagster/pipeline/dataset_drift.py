"""How many rows of the dataset changed since a student was trained on it."""

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
"""The file next to the adapter with the rows that it was trained on. It is not part of the adapter's hash."""
_SCHEMA = pl.Schema({"prompt_id": pl.String, "answer": pl.String, "weight": pl.Float64})


def format_plain_answer(answer: str) -> str:
    """An answer, given as canonical JSON, as plain text: a string without quotes, any other value as JSON."""
    value = json.loads(answer)
    return value if isinstance(value, str) else answer


def write_trained_on(folder: Path, rows: Iterable[TrainRow]) -> None:
    """Write the training rows next to the adapter in `folder`."""
    values = [(row.prompt_id, row.answer_label, row.weight) for row in rows]
    pl.DataFrame(values, schema=_SCHEMA, orient="row").write_parquet(folder / TRAINED_ON)


def count_changed_rows(lake: Lake, task: str, student: str) -> int | None:
    """Count the training rows that were added to the dataset, and those that were removed, since the training.

    A row with another answer or weight counts twice, as removed and as added. None if there is no dataset, or if the
    training rows are unknown.
    """
    path = lake.get_folder(task, "student_adapter", student) / TRAINED_ON
    if not path.exists() or lake.read_record(task, "filtered_dataset") is None:
        return None
    trained = set(pl.read_parquet(path, schema=_SCHEMA).iter_rows())
    dataset, _ = lake.read(task, "filtered_dataset", None, DATASET)
    train = dataset.filter(pl.col("split") == "train").select("prompt_id", "answer", "weight")
    now = {(id_, format_plain_answer(answer), weight) for id_, answer, weight in train.iter_rows()}
    return len(trained ^ now)
