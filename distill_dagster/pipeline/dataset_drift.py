"""How many rows of the dataset changed since a student was trained on it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import polars as pl

from distill_dagster.config import Task
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


def count_changed_rows(lake: Lake, task_name: str, task: Task, asset: str, student: str) -> int | None:
    """Count the rows that were added to what a student learns from, and those that were removed, since its training.

    A student learns from the dataset, or from the labels of its assistant. A row with another answer or weight counts
    twice, as removed and as added. Rows that the student's mix leaves out do not count.

    Args:
        asset: what would be made again. What belongs to an assistant depends on the training of the assistant.

    Returns:
        None if there is nothing to learn from, or if the training rows are unknown.
    """
    is_assistant = asset in ("assistant_adapter", "assistant_labels")
    path = lake.get_folder(task_name, "assistant_adapter" if is_assistant else "student_adapter", student) / TRAINED_ON
    assistant = None if is_assistant else task.students[student].assistant
    source = "assistant_labels" if assistant else "filtered_dataset"
    if not path.exists() or lake.read_record(task_name, source, assistant) is None:
        return None
    trained = set(pl.read_parquet(path, schema=_SCHEMA).iter_rows())
    rows, _ = lake.read(task_name, source, assistant, DATASET)
    train = select_mixed_rows(rows.filter(pl.col("split") == "train"), task.students[student].data)
    return len(trained ^ list_row_identities(train))
