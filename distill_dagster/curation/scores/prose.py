"""Repetition and prose of a response, and the share of the prompt that it repeats."""

from __future__ import annotations

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView

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


def _score_prose(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    from distill_dagster.curation.scores.kernel import measure_prose  # loads numba

    return measure_prose(rows["written"])


def _score_echo(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    from distill_dagster.curation.scores.kernel import measure_echo  # loads numba

    return measure_echo(rows["answer_text"], rows["text"]).to_frame()


PROSE_SCORER = Scorer("prose", "1", PROSE_FIELDS, _score_prose)
ECHO_SCORER = Scorer("echo", "1", ("echo",), _score_echo)
