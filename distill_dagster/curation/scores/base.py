"""What a scorer is: a function from texts to columns, with a version, and nothing of thresholds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl

from distill_dagster.curation.task_view import TaskView


@dataclass(frozen=True)
class Scorer:
    """One way to score rows. What it gives depends on the rows and the task alone.

    Args:
        version: raise it where what it gives changes; stored scores of another version are worked out anew.
        fields: what it gives, of `tables.SCORES`.
        run: from the rows with `texts.with_texts` to a frame of these fields, row by row.
    """

    name: str
    version: str
    fields: tuple[str, ...]
    run: Callable[[pl.DataFrame, TaskView], pl.DataFrame]


PROSE_FIELDS = (
    "prose_words",
    "duplicate_lines",
    "duplicate_line_chars",
    "duplicate_paragraphs",
    "duplicate_paragraph_chars",
    *(f"top_{n}_gram" for n in (2, 3, 4)),
    *(f"duplicate_{n}_grams" for n in (5, 6, 7, 8, 9, 10)),
    "mean_word_length",
    "hashes",
    "ellipses",
    "bullet_lines",
    "ellipsis_lines",
    "alphabetic_words",
    "stop_words",
)
