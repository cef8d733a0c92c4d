"""What a scorer is: a function from rows to score columns, with a version and without thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from distill_dagster.curation.task_view import TaskView


@dataclass(frozen=True)
class Scorer:
    """One way to score rows. The result depends on the rows and the task alone.

    Args:
        name: its name in records and in filters.
        version: raise it when the results change. Scores of another version are computed again.
        fields: the scores that it computes, of `tables.schemas.SCORES`.
        run: takes rows with the columns of `text_columns.add_text_columns`, and returns a frame with one row for each
            and these fields.
        reads_rows_only: false if `run` reads columns that are not part of a candidate. Its scores are never reused.
        uses_phone_regions: whether the result depends on the phone regions of the task.
    """

    name: str
    version: str
    fields: tuple[str, ...]
    run: Callable[[pl.DataFrame, TaskView], pl.DataFrame]
    reads_rows_only: bool = True
    uses_phone_regions: bool = False
