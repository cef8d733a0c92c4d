"""How many rows of the dataset changed since a student was trained on it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from distill_dagster.config import DataMixSpec
from distill_dagster.curation.dataset.data_mix import select_mixed_rows
from distill_dagster.tables.lake import Lake
from distill_dagster.tables.schemas import DATASET

RowIdentity = tuple[str, str, float]
"""A training row: its prompt id, its answer as plain text, and its weight in the dataset."""
TRAINED_ON = "trained_on.parquet"
"""The file next to the adapter with the rows that it was trained on. It is not part of the adapter's hash."""
_SCHEMA = pl.Schema({"prompt_id": pl.String, "answer": pl.String, "weight": pl.Float64})


def format_plain_answer(answer: str) -> str:
    """An answer, given as canonical JSON, as plain text: a string without quotes, any other value as JSON."""
    value = json.loads(answer)
    return value if isinstance(value, str) else answer


def list_row_identities(train: pl.DataFrame) -> set[RowIdentity]:
    """The training rows of a dataset (schema DATASET): their prompts, answers and weights."""
    rows = train.select("prompt_id", "answer", "weight").iter_rows()
    return {(prompt_id, format_plain_answer(answer), weight) for prompt_id, answer, weight in rows}


def write_trained_on(folder: Path, rows: Iterable[RowIdentity]) -> None:
    """Write the training rows next to the adapter in `folder`, without the repetitions and weights of a mix."""
    pl.DataFrame(sorted(rows), schema=_SCHEMA, orient="row").write_parquet(folder / TRAINED_ON)


def count_changed_rows(lake: Lake, task: str, student: str, mix: DataMixSpec) -> int | None:
    """Count the training rows that were added to the dataset, and those that were removed, since the training.

    A row with another answer or weight counts twice, as removed and as added. Rows that the student's mix leaves out do
    not count. None if there is no dataset, or if the training rows are unknown.
    """
    path = lake.get_folder(task, "student_adapter", student) / TRAINED_ON
    if not path.exists() or lake.read_record(task, "filtered_dataset") is None:
        return None
    trained = set(pl.read_parquet(path, schema=_SCHEMA).iter_rows())
    dataset, _ = lake.read(task, "filtered_dataset", None, DATASET)
    train = select_mixed_rows(dataset.filter(pl.col("split") == "train"), mix)
    return len(trained ^ list_row_identities(train))
