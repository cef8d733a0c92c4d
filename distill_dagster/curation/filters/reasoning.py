"""What the reasoning says: before its time, against its answer, or against arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import polars as pl
from pydantic import Field

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.curation.filters.base import Filter, FilterExample, detail_expr, get_scorer, score_expr
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import FREE_TEXT_KINDS, TaskView

_ALL_KINDS = (*LABEL_KINDS, *FREE_TEXT_KINDS, "math", "qa")


class AnswerFirst(Filter):
    """The reasoning begins with the answer ("The answer is 7, because …", or the label itself).

    What follows explains an answer that was there before, so a student learns nothing from it of how to find one.
    """

    name = "answer_first"
    reason = "answer_first"
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {key: {} for key in ("math", "classification", "nli")}
    kept = FilterExample({"reasoning": "Three and four make seven. So the answer is 7.", "answer": 7}, kind="math")
    dropped = FilterExample({"reasoning": "The answer is 7. For three and four make seven.", "answer": 7}, kind="math")

    reasoned = _ALL_KINDS

    def scorers(self) -> list[Scorer]:
        return [get_scorer("reasoning")]

    def drops(self, about: TaskView) -> pl.Expr:
        return score_expr("answer_first")

    def detail(self, about: TaskView) -> pl.Expr:
        return pl.col("reasoning").str.slice(0, 60)


class Contradiction(Filter):
    """The reasoning announces an answer ("The answer is …") that is not the one that was given.

    Numbers are compared as numbers, labels by name, short texts by whether they share a word. Longer ones never are.
    """

    name = "contradiction"
    reason = "contradiction"
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {key: {} for key in ("math", "qa", "classification", "nli")}
    kept = FilterExample({"reasoning": "Three and four make seven. The answer is 7.", "answer": 7}, kind="math")
    dropped = FilterExample({"reasoning": "Three and four make seven. The answer is 7.", "answer": 12}, kind="math")

    reasoned = _ALL_KINDS

    def scorers(self) -> list[Scorer]:
        return [get_scorer("reasoning")]

    def drops(self, about: TaskView) -> pl.Expr:
        return score_expr("conclusion").is_not_null()

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr("reasoning: ", score_expr("conclusion").str.slice(0, 60), ", answer: ", pl.col("answer"))


class Arithmetic(Filter):
    """An equation between numbers in the reasoning does not hold ("12 + 5 = 18").

    Worked out in fractions by a parser, never by `eval`. Rounded results hold ("10 / 3 = 3.33"); equations with
    variables, percentages or words between the numbers are not looked at.
    """

    name = "arithmetic"
    reason = "arithmetic"
    short = "max_wrong"
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {"math": {}}
    kept = FilterExample({"reasoning": "3 * 4 = 12, and 12 + 5 = 17.", "answer": 17}, kind="math")
    dropped = FilterExample({"reasoning": "3 * 4 = 12, and 12 + 5 = 18.", "answer": 18}, kind="math")

    reasoned = _ALL_KINDS

    max_wrong: int = Field(default=0, ge=0, description="so many wrong ones are kept")

    def scorers(self) -> list[Scorer]:
        return [get_scorer("arithmetic")]

    def drops(self, about: TaskView) -> pl.Expr:
        return score_expr("wrong_sums") > self.max_wrong

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr(score_expr("wrong_sums"), " of ", score_expr("sums"), " wrong: ", score_expr("wrong_sum"))
