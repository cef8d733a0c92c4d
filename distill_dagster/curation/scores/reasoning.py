"""Scores of reasoning: does it give its answer away before it begins, come to another one, or calculate wrongly."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import LABEL_KINDS, TaskView
from distill_dagster.kinds.arithmetic import MAX_CHARS, NotANumberError, evaluate_expression, parse_number
from distill_dagster.kinds.similarity import normalize_squad

CONCLUSION_PATTERN = (
    r"(?i)(?:\b(?:the|my|our|final|correct) (?:final |correct |right )?"
    r"(?:answer|label|category|class|result|choice|option)\b(?: is| =|:)+|\*\*answer:?\*\*:?|####)"
)
"""What announces an answer within reasoning."""
_CONCLUSION_TEXT_PATTERN = CONCLUSION_PATTERN + r"[ \t:*\"'`(]*([^\n]{1,200})"
_FIRST_SENTENCE_PATTERN = r"^[^.!?\n]{0,200}[.!?\n]?"
_SPLIT = r"(?:\. |\.$|[!?;\n])"

_NUMBER = r"\(?-?\d+(?:\.\d+)?\)?"
_EQUATION = rf"(?:\(* ?{_NUMBER} ?\)* ?[-+*/] ?)+\(* ?{_NUMBER}[ )]*= ?-?\d+(?:\.\d+)?"
# What stands around it: no part of a longer expression, no variable, no percentage.
_LEFT = r"(?:^|[^-+*/=%^\w.) ] ?|[.] |[A-Za-z]{2,} )"
_RIGHT = r"(?:$|[^-+*/=%^\w. ]|[.](?:\D|$)| [^-+*/=%^(\s]|\s*$|\n)"
_BINARY = re.compile(r"\s*(-?\d+(?:\.\d+)?) ?([-+*/]) ?(-?\d+(?:\.\d+)?) ?= ?(-?\d+(?:\.\d+)?)\s*")
_SIGN_REPLACEMENTS = {"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "$": "", "€": "", "£": "", "\\": ""}


def _score_reasoning(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    """`answer_first`: the first sentence announces the answer, or a reasoning about a label is begun with the label.
    `conclusion`: what the reasoning announces as its answer, where that is not the answer that was given."""
    first = pl.col("reasoning").str.extract(f"({_FIRST_SENTENCE_PATTERN})", 1)
    later = pl.col("reasoning").str.len_chars() > first.str.len_chars() + 20  # else all of it is the conclusion
    announced = first.str.contains(CONCLUSION_PATTERN)
    if about.kind in LABEL_KINDS:
        bare = first.str.to_lowercase().str.strip_chars(" \"'`*_#-:\n\t")
        announced = announced | bare.str.starts_with(pl.col("answer_text").str.to_lowercase())
    concludes = rows["reasoning"].str.contains(CONCLUSION_PATTERN).fill_null(False)
    # A label may stand there alone; of other kinds only what announces something somewhere may do so at once.
    look = rows["reasoning"].is_not_null() if about.kind in LABEL_KINDS else concludes
    held = rows.filter(look).select(announced & later).to_series()
    begins = pl.Series("answer_first", [False]).new_from_index(0, rows.height).set(rows["reasoning"].is_null(), None)
    begins = begins.scatter(look.arg_true(), held) if len(held) else begins
    mask = concludes & rows["answer_text"].is_not_null()
    last = (
        pl.col("reasoning")
        .str.extract_all(_CONCLUSION_TEXT_PATTERN)
        .list.last()
        .str.extract(_CONCLUSION_TEXT_PATTERN, 1)
    )
    pairs = rows.filter(mask).select(last, "answer_text").rows()
    other = [c if c is not None and _is_contradiction(c, a, about) else None for c, a in pairs]
    return pl.DataFrame([begins, _scatter_values("conclusion", mask, other, pl.String())])


def _scatter_values(name: str, mask: pl.Series, values: list[Any], dtype: pl.DataType) -> pl.Series:
    """The values where the mask is true, null elsewhere."""
    whole = pl.Series(name, [None], dtype=dtype).new_from_index(0, len(mask))
    return whole.scatter(mask.arg_true(), pl.Series(values, dtype=dtype)) if values else whole


def _is_contradiction(conclusion: str, answer: str, about: TaskView) -> bool:
    """Whether what was announced cannot be the answer. In doubt it can."""
    if about.kind == "math":
        try:
            found = parse_number(re.split(r"(?<!\d)\.|\.(?!\d)", conclusion)[0][:200])
            return abs(float(found) - float(answer)) > 1e-6 * max(1.0, abs(float(answer)))
        except (NotANumberError, ValueError, OverflowError):
            return False
    said, given = normalize_squad(conclusion), normalize_squad(answer)
    if not said or not given:
        return False
    if about.kind in LABEL_KINDS:
        named = [label for label in about.labels if f" {normalize_squad(label)} " in f" {said} "]
        return bool(named) and answer not in named
    if about.kind != "qa" or len(given.split()) > 12:
        return False
    return not set(said.split()) & set(given.split())


def _score_arithmetic(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    """`sums`: how many equations between numbers stand in the reasoning, `wrong_sums` of them do not hold."""
    equal = rows["reasoning"].str.contains("=", literal=True).fill_null(False)
    plain = pl.col("reasoning").str.replace_many(list(_SIGN_REPLACEMENTS), list(_SIGN_REPLACEMENTS.values()))
    plain = plain.str.replace_all(r"(\d),(\d{3})\b", "$1$2").str.replace_all(r"(\d) ?x ?(\d)", "$1*$2")
    plain = plain.str.replace_all(r"= ?(-?\d+(?:\.\d+)?) ?(?:[a-z]+ )?= ", "= $1 ; $1 = ")
    # Twice, since a sign that ends one equation may begin the next.
    plain = plain.str.replace_all(r"([;,.:\n])(\s)", "$1$1$2")
    found = rows.filter(equal).select(
        pl.Series("row", equal.arg_true(), dtype=pl.Int64),
        plain.str.extract_all(f"{_LEFT}{_EQUATION}{_RIGHT}").alias("all"),
    )
    long = found.explode("all").select("row", pl.col("all").str.extract(f"({_EQUATION})", 1)).drop_nulls()
    each = long.select(pl.col("all").unique(maintain_order=True))
    judged = each.with_columns(pl.Series("holds", [is_equation_true(one) for one in each["all"]], dtype=pl.Boolean))
    joined = long.join(judged, on="all", maintain_order="left").filter(pl.col("holds").is_not_null())
    counts = joined.group_by("row").agg(
        pl.len().cast(pl.Int64).alias("sums"),
        (~pl.col("holds")).sum().cast(pl.Int64).alias("wrong_sums"),
        pl.col("all").filter(~pl.col("holds")).first().str.strip_chars().alias("wrong_sum"),
    )
    every = pl.DataFrame({"row": pl.Series(range(rows.height), dtype=pl.Int64)})
    return every.join(counts, on="row", how="left", maintain_order="left").drop("row")


@lru_cache(maxsize=200_000)
def is_equation_true(equation: str) -> bool | None:
    """Whether "3 * 4 = 12" is true, exactly or rounded as it is written; None where it is no arithmetic.

    Worked out in fractions by a parser that knows numbers, + - * / and brackets; nothing is ever evaluated as code.
    """
    left, _, right = equation.rpartition("=")
    if len(equation) > MAX_CHARS:
        return None
    try:
        simple = _BINARY.fullmatch(equation)
        if simple:
            a, b = Fraction(simple[1]), Fraction(simple[3])
            value = {"+": a + b, "-": a - b, "*": a * b}.get(simple[2])
            if value is None:
                value = a / b
        else:
            value = evaluate_expression(_balance_brackets(left))
        said = Fraction(right.strip())
    except (NotANumberError, ValueError, ZeroDivisionError):
        return None
    if value == said:
        return True
    decimals = len(right.strip().partition(".")[2])
    if value.denominator == 1 and not decimals:
        return False
    # 10 / 3 = 3.33, and 10 / 3 = 3 where whole things are shared out.
    return abs(value - said) < Fraction(1, 10**decimals)


def _balance_brackets(text: str) -> str:
    """An expression without brackets that were opened before it began, as in "(3 + 4 = 7)"."""
    spare = text.count("(") - text.count(")")
    return text.replace("(", "", spare).strip() if spare > 0 else text.strip()


REASONING_SCORER = Scorer("reasoning", "1", ("answer_first", "conclusion"), _score_reasoning)
ARITHMETIC_SCORER = Scorer("arithmetic", "1", ("sums", "wrong_sums", "wrong_sum"), _score_arithmetic)
