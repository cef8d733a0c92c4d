"""Find the training rows that are nearest to each error of a student, by sentence embedding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.core import progress
from distill_dagster.curation.dataset.teacher_counts import PEOPLE
from distill_dagster.evaluation.formatting import format_answer, shorten_text
from distill_dagster.evaluation.golden_items import NearestRow
from distill_dagster.student.sentences import embed_remembered_sentences
from distill_dagster.student.types import StudentPrompt
from distill_dagster.tables.messages import split_answer

MOST_ERRORS = 200
"""Errors whose nearest rows are searched."""
MOST_ROWS = 5_000
"""Training rows that are searched. If there are more, so many are taken evenly."""
ROWS_PER_ERROR = 3
_BATCH = 256
_MAX_CHARS = 300


def find_nearest_rows(
    dataset: pl.DataFrame, errors: Mapping[str, str], models: Path, most: int = ROWS_PER_ERROR
) -> dict[str, tuple[NearestRow, ...]]:
    """Find the training rows whose prompts are nearest to each error, the nearest first, by item id.

    Args:
        dataset: a table with the schema DATASET.
        errors: item id to the text of its prompt, as the student reads it.

    Raises:
        ModelError: the sentence model cannot be found or loaded.
    """
    train = dataset.filter(pl.col("split") == "train")
    if not errors or train.is_empty():
        return {}
    import numpy as np

    if train.height > MOST_ROWS:
        train = train[np.linspace(0, train.height - 1, MOST_ROWS).astype(int).tolist()]
    prompts = [StudentPrompt.from_messages(split_answer(messages)[0]).text for messages in train["messages"]]
    vectors = []
    for start in range(0, len(prompts), _BATCH):
        progress.report_progress("reading training rows for the errors", start, len(prompts))
        vectors.append(embed_remembered_sentences(prompts[start : start + _BATCH], models))
    cosines = embed_remembered_sentences(list(errors.values()), models) @ np.concatenate(vectors).T
    # Rounded, so that the order of equal rows does not depend on the last digits.
    order = np.argsort(-np.round(cosines, 4), axis=1, kind="stable")[:, :most]
    return {
        item_id: tuple(_build_row(train.row(int(n), named=True), prompts[n], float(cosines[number, n])) for n in places)
        for number, (item_id, places) in enumerate(zip(errors, order, strict=True))
    }


def _build_row(row: Mapping[str, Any], prompt: str, similarity: float) -> NearestRow:
    answer = json.loads(row["answer"])
    stated = {entry["label"]: entry["prob"] for entry in row["soft_labels"] or []}
    share = stated.get(answer) if isinstance(answer, str) else None
    return NearestRow(
        row["prompt_id"],
        round(similarity, 3),
        shorten_text(prompt, _MAX_CHARS),
        shorten_text(format_answer(row["answer"]), _MAX_CHARS),
        row["teacher"] or PEOPLE,
        share,
        shorten_text(row["reasoning"], _MAX_CHARS) if row["reasoning"] else None,
    )
