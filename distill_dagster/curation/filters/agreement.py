"""Whether others agree: the reference, the samples, the teachers, the judge, and who meant the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterExample, detail_expr, get_scorer, score_expr
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import json_text_expr


class ReferenceMismatch(Filter):
    """The answer is not the `reference` of its prompt. Prompts without one are kept, and so are all rows of people.

    Answers are compared as the kind compares them; of free texts it is their likeness (ROUGE-L, chrF), so set `min`.
    """

    name = "gold"
    reason = "not_gold"
    short = "min"
    kept = FilterExample({"answer": "refund", "reference": "refund"}, kind="classification", labels=("refund", "login"))
    dropped = FilterExample(
        {"answer": "login", "reference": "refund"}, kind="classification", labels=("refund", "login")
    )

    min: float = Field(default=1.0, ge=0, le=1, description="the least score against the reference")

    def scorers(self) -> list[Scorer]:
        return [get_scorer("gold")]

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("teacher").is_not_null() & (score_expr("gold") < self.min)

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr("score ", score_expr("gold"), " against ", pl.col("reference").str.slice(0, 60))


class LowAgreement(Filter):
    """Fewer of the teacher's samples agree with the candidate than `min_agreement`."""

    name = "low_agreement"
    reason = "low_agreement"
    keys: ClassVar[Mapping[str, str]] = {"min_agreement": "min_agreement"}
    kept = FilterExample({"agreement": 2 / 3}, {"min_agreement": 0.6})
    dropped = FilterExample({"agreement": 1 / 3}, {"min_agreement": 0.6})

    min_agreement: float = Field(default=0.0, ge=0, le=1, description="share of the samples")

    def active(self) -> bool:
        return self.enabled and self.min_agreement > 0

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("agreement").fill_null(0) < self.min_agreement

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr("agreement ", pl.col("agreement").round(3))


class LowConfidence(Filter):
    """The candidate's probability in its soft label is below `min_confidence`."""

    name = "low_confidence"
    reason = "low_confidence"
    keys: ClassVar[Mapping[str, str]] = {"min_confidence": "min_confidence"}
    kept = FilterExample({"confidence": 0.8}, {"min_confidence": 0.5})
    dropped = FilterExample({"confidence": 0.4}, {"min_confidence": 0.5})

    min_confidence: float = Field(default=0.0, ge=0, le=1, description="probability of the candidate")

    def active(self) -> bool:
        return self.enabled and self.min_confidence > 0

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("confidence").fill_null(0) < self.min_confidence

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr("confidence ", pl.col("confidence").round(3))


class HighConfidence(Filter):
    """The teacher is surer than `max_confidence`: with `min_confidence` a band, to leave out what is too easy.

    Rows that people answered are kept.
    """

    name = "high_confidence"
    reason = "high_confidence"
    keys: ClassVar[Mapping[str, str]] = {"max_confidence": "max_confidence"}
    kept = FilterExample({"confidence": 0.8}, {"max_confidence": 0.95})
    dropped = FilterExample({"confidence": 0.99}, {"max_confidence": 0.95})

    max_confidence: float = Field(default=1.0, ge=0, le=1, description="probability of the candidate")

    def active(self) -> bool:
        return self.enabled and self.max_confidence < 1

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("teacher").is_not_null() & (pl.col("confidence") > self.max_confidence)

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr("confidence ", pl.col("confidence").round(3))


class TeachersDisagree(Filter):
    """Of several teachers fewer gave the candidate's answer than `min_teacher_agreement`."""

    name = "teachers_disagree"
    reason = "teachers_disagree"
    keys: ClassVar[Mapping[str, str]] = {"min_teacher_agreement": "min_teacher_agreement"}
    kept = FilterExample({"teacher_agreement": 1.0}, {"min_teacher_agreement": 1})
    dropped = FilterExample({"teacher_agreement": 0.5}, {"min_teacher_agreement": 1})

    min_teacher_agreement: float = Field(default=0.0, ge=0, le=1, description="share of the teachers that were asked")

    def active(self) -> bool:
        return self.enabled and self.min_teacher_agreement > 0

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("teacher_agreement").fill_null(1) < self.min_teacher_agreement

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr("agreement of teachers ", pl.col("teacher_agreement").round(3))


class LowJudgeScore(Filter):
    """The judge's mean score is below `min_judge`, where 1 of 5 counts 0 and 5 of 5 counts 1; or it gave none."""

    name = "low_judge"
    reason = "low_judge"
    keys: ClassVar[Mapping[str, str]] = {"min_judge": "min_judge"}
    kept = FilterExample({"judge_score": 0.75}, {"min_judge": 0.6})
    dropped = FilterExample({"judge_score": 0.5}, {"min_judge": 0.6})

    min_judge: float = Field(default=0.0, ge=0, le=1, description="the judge's mean score")

    def active(self) -> bool:
        return self.enabled and self.min_judge > 0

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("teacher").is_not_null() & (pl.col("judge_score").fill_null(0) < self.min_judge)

    def detail(self, about: TaskView) -> pl.Expr:
        judged = detail_expr("judge score ", pl.col("judge_score").round(3))
        return judged.fill_null("not judged")


class TargetLabelMismatch(Filter):
    """The prompt was written or imagined for another label (`target_label`) than the answer."""

    name = "other_label"
    reason = "other_label"
    keys: ClassVar[Mapping[str, str]] = {"target_label": "target_label"}
    kept = FilterExample(
        {"answer": "refund", "target_label": "refund"},
        {"target_label": "drop_disagreement"},
        "classification",
        ("refund", "login"),
    )
    dropped = FilterExample(
        {"answer": "login", "target_label": "refund"},
        {"target_label": "drop_disagreement"},
        "classification",
        ("refund", "login"),
    )

    target_label: Literal["keep_answer", "drop_disagreement"] = Field(
        default="keep_answer", description="whether such rows are dropped"
    )

    def active(self) -> bool:
        return self.enabled and self.target_label == "drop_disagreement"

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("answer") != json_text_expr(pl.col("target_label"))

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr("meant as ", pl.col("target_label"), ", answered ", pl.col("answer"))
