"""Equations between numbers in the reasoning, and how many of them are wrong."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

import polars as pl

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds.arithmetic import MAX_CHARS, NotANumberError, evaluate_expression

_NUMBER = r"\(?-?\d+(?:\.\d+)?\)?"
_EQUATION = rf"(?:\(* ?{_NUMBER} ?\)* ?[-+*/] ?)+\(* ?{_NUMBER}[ )]*= ?-?\d+(?:\.\d+)?"
# The text around an equation: not part of a longer expression, no variable and no percentage.
_LEFT = r"(?:^|[^-+*/=%^\w.) ] ?|[.] |[A-Za-z]{2,} )"
_RIGHT = r"(?:$|[^-+*/=%^\w. ]|[.](?:\D|$)| [^-+*/=%^(\s]|\s*$|\n)"
_BINARY = re.compile(r"\s*(-?\d+(?:\.\d+)?) ?([-+*/]) ?(-?\d+(?:\.\d+)?) ?= ?(-?\d+(?:\.\d+)?)\s*")
_SIGN_REPLACEMENTS = {"×": "*", "·": "*", "⋅": "*", "÷": "/", "−": "-", "–": "-", "$": "", "€": "", "£": "", "\\": ""}


def _score_arithmetic(rows: pl.DataFrame, task: TaskView) -> pl.DataFrame:
    """`sums`: number of equations between numbers. `wrong_sums`: number of wrong ones. `wrong_sum`: the first."""
    has_equation = rows["reasoning"].str.contains("=", literal=True).fill_null(False)
    plain = pl.col("reasoning").str.replace_many(list(_SIGN_REPLACEMENTS), list(_SIGN_REPLACEMENTS.values()))
    plain = plain.str.replace_all(r"(\d),(\d{3})\b", "$1$2").str.replace_all(r"(\d) ?x ?(\d)", "$1*$2")
    plain = plain.str.replace_all(r"= ?(-?\d+(?:\.\d+)?) ?(?:[a-z]+ )?= ", "= $1 ; $1 = ")
    # A separator that ends one equation may begin the next: double it, so that both match.
    plain = plain.str.replace_all(r"([;,.:\n])(\s)", "$1$1$2")
    equations = rows.filter(has_equation).select(
        pl.Series("row", has_equation.arg_true(), dtype=pl.Int64),
        plain.str.extract_all(f"{_LEFT}{_EQUATION}{_RIGHT}").alias("equation"),
    )
    long = equations.explode("equation").select("row", pl.col("equation").str.extract(f"({_EQUATION})", 1)).drop_nulls()
    distinct = long.select(pl.col("equation").unique(maintain_order=True))
    results = [is_equation_true(equation) for equation in distinct["equation"]]
    checked = distinct.with_columns(pl.Series("is_true", results, dtype=pl.Boolean))
    joined = long.join(checked, on="equation", maintain_order="left").filter(pl.col("is_true").is_not_null())
    counts = joined.group_by("row").agg(
        pl.len().cast(pl.Int64).alias("sums"),
        (~pl.col("is_true")).sum().cast(pl.Int64).alias("wrong_sums"),
        pl.col("equation").filter(~pl.col("is_true")).first().str.strip_chars().alias("wrong_sum"),
    )
    all_rows = pl.DataFrame({"row": pl.Series(range(rows.height), dtype=pl.Int64)})
    return all_rows.join(counts, on="row", how="left", maintain_order="left").drop("row")


@lru_cache(maxsize=200_000)
def is_equation_true(equation: str) -> bool | None:
    """Whether an equation such as "3 * 4 = 12" is true, exactly or rounded; None if it is not arithmetic.

    A parser computes in fractions. It knows numbers, + - * / and brackets; nothing is evaluated as code.
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
        result = Fraction(right.strip())
    except (NotANumberError, ValueError, ZeroDivisionError):
        return None
    if value == result:
        return True
    decimals = len(right.strip().partition(".")[2])
    if value.denominator == 1 and not decimals:
        return False
    # 10 / 3 = 3.33, and also 10 / 3 = 3 for things that cannot be split.
    return abs(value - result) < Fraction(1, 10**decimals)


def _balance_brackets(text: str) -> str:
    """An expression without opening brackets that are never closed, as in "(3 + 4 = 7)"."""
    unclosed = text.count("(") - text.count(")")
    return text.replace("(", "", unclosed).strip() if unclosed > 0 else text.strip()


ARITHMETIC_SCORER = Scorer("arithmetic", "1", ("sums", "wrong_sums", "wrong_sum"), _score_arithmetic)
