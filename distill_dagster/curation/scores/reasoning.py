"""Two faults of reasoning: it names the answer before it begins, or it concludes with another answer."""

from __future__ import annotations

import re
from typing import Any

import polars as pl

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds.arithmetic import NotANumberError, parse_number
from distill_dagster.kinds.similarity import normalize_squad

CONCLUSION_PATTERN = (
    r"(?i)(?:\b(?:the|my|our|final|correct) (?:final |correct |right )?"
    r"(?:answer|label|category|class|result|choice|option)\b(?: is| =|:)+|\*\*answer:?\*\*:?|####)"
)
"""The words that announce an answer in a reasoning."""
MIN_REST_CHARS = 20
"""A first sentence that fewer characters follow is the whole reasoning, and may state the answer."""
MAX_QA_WORDS = 12
"""Longer answers of kind `qa` can be worded in too many ways to decide whether a conclusion contradicts them."""
_CONCLUSION_TEXT_PATTERN = CONCLUSION_PATTERN + r"[ \t:*\"'`(]*([^\n]{1,200})"
_FIRST_SENTENCE_PATTERN = r"^[^.!?\n]{0,200}[.!?\n]?"


def _score_reasoning(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    """`answer_first` and `conclusion`.

    `answer_first`: the first sentence announces the answer, or the reasoning about a label begins with the label.
    `conclusion`: the answer that the reasoning announces, if it contradicts the answer that was given.
    """
    first = pl.col("reasoning").str.extract(f"({_FIRST_SENTENCE_PATTERN})", 1)
    has_rest = pl.col("reasoning").str.len_chars() > first.str.len_chars() + MIN_REST_CHARS
    announced = first.str.contains(CONCLUSION_PATTERN)
    if task.kind in LABEL_KINDS:
        bare = first.str.to_lowercase().str.strip_chars(" \"'`*_#-:\n\t")
        announced = announced | bare.str.starts_with(pl.col("answer_text").str.to_lowercase())
    concludes = rows["reasoning"].str.contains(CONCLUSION_PATTERN).fill_null(False)
    # A reasoning about a label may begin with the label. For other kinds, only rows with an announcement are checked.
    checked = rows["reasoning"].is_not_null() if task.kind in LABEL_KINDS else concludes
    values = rows.filter(checked).select(announced & has_rest).to_series()
    answer_first = pl.Series("answer_first", [False]).new_from_index(0, rows.height)
    answer_first = answer_first.set(rows["reasoning"].is_null(), None)
    answer_first = answer_first.scatter(checked.arg_true(), values) if len(values) else answer_first
    mask = concludes & rows["answer_text"].is_not_null()
    last = pl.col("reasoning").str.extract_all(_CONCLUSION_TEXT_PATTERN).list.last()
    pairs = rows.filter(mask).select(last.str.extract(_CONCLUSION_TEXT_PATTERN, 1), "answer_text").rows()
    conclusions = [
        conclusion if conclusion is not None and _is_contradiction(conclusion, answer, task) else None
        for conclusion, answer in pairs
    ]
    return pl.DataFrame([answer_first, _scatter_values("conclusion", mask, conclusions, pl.String())])


def _scatter_values(name: str, mask: pl.Series, values: list[Any], dtype: pl.DataType) -> pl.Series:
    """A series with the values where the mask is true, and null elsewhere."""
    whole = pl.Series(name, [None], dtype=dtype).new_from_index(0, len(mask))
    return whole.scatter(mask.arg_true(), pl.Series(values, dtype=dtype)) if values else whole


def _is_contradiction(conclusion: str, answer: str, task: TaskView) -> bool:
    """Whether a conclusion contradicts the answer. False in doubt."""
    if task.kind == "math":
        try:
            number = parse_number(re.split(r"(?<!\d)\.|\.(?!\d)", conclusion)[0][:200])
            return abs(float(number) - float(answer)) > 1e-6 * max(1.0, abs(float(answer)))
        except (NotANumberError, ValueError, OverflowError):
            return False
    conclusion_words, answer_words = normalize_squad(conclusion), normalize_squad(answer)
    if not conclusion_words or not answer_words:
        return False
    if task.kind in LABEL_KINDS:
        named = [label for label in task.labels if f" {normalize_squad(label)} " in f" {conclusion_words} "]
        return bool(named) and answer not in named
    if task.kind != "qa" or len(answer_words.split()) > MAX_QA_WORDS:
        return False
    return not set(conclusion_words.split()) & set(answer_words.split())


REASONING_SCORER = Scorer("reasoning", "1", ("answer_first", "conclusion"), _score_reasoning)
