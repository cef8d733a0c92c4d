"""Number of words of the reasoning and of the answer."""

from __future__ import annotations

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView


def _score_lengths(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    from distill_dagster.curation.scores.kernel import count_words  # loads numba

    texts = {"reasoning_words": rows["reasoning"], "answer_words": rows["answer_text"]}
    return pl.DataFrame([count_words(text).alias(name) for name, text in texts.items()])


LENGTHS_SCORER = Scorer("lengths", "1", ("reasoning_words", "answer_words"), _score_lengths)
