"""Whether there is an answer at all, and one that can be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import polars as pl
from pydantic import Field

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.curation.filters.base import Filter, FilterExample, detail_expr, get_scorer, score_expr
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import FREE_TEXT_KINDS, TaskView
from distill_dagster.kinds import WANTED_REFUSAL

_ERROR_EXPR = pl.coalesce("error", "status")


class Truncated(Filter):
    """The answer was cut at `max_tokens` before it ended.

    With `finish` also an answer that could be read, of a completion that was cut: reasoning may have run on behind it.
    """

    name = "truncated"
    reason = "truncated"
    short = "finish"
    by_default = True
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {key: {"finish": True} for key in FREE_TEXT_KINDS}
    kept = FilterExample({"answer": "All of it."})
    dropped = FilterExample({"answer": None, "status": "truncated", "error": "the answer was cut at max_tokens"})

    finish: bool = Field(default=False, description="drop readable answers too where the finish reason is `length`")

    def scorers(self) -> list[Scorer]:
        return [get_scorer("sample")] if self.finish else []

    def drops(self, about: TaskView) -> pl.Expr:
        cut = pl.col("status") == "truncated"
        return cut | (score_expr("finish_reason") == "length").fill_null(False) if self.finish else cut

    def detail(self, about: TaskView) -> pl.Expr:
        cut = pl.when(pl.col("status") == "truncated").then(_ERROR_EXPR)
        return cut.otherwise(pl.lit("finish reason length")) if self.finish else _ERROR_EXPR


class Refused(Filter):
    """The teacher declined. Rows of a slice with `refusal: wanted` are kept: there a refusal is the right answer.

    With `phrases` also what reads as a refusal somewhere within an answer or its reasoning.
    """

    name = "refused"
    reason = "refused"
    short = "phrases"
    by_default = True
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        key: {"phrases": True} for key in (*FREE_TEXT_KINDS, "qa", "math")
    }
    kept = FilterExample({"answer": "Here is the letter.", "reasoning": None}, {"phrases": True})
    dropped = FilterExample({"answer": "Well. I cannot help with that."}, {"phrases": True})

    phrases: bool = Field(default=False, description="look for the phrases of a refusal in answers and reasoning")

    def scorers(self) -> list[Scorer]:
        return [get_scorer("refusal")] if self.phrases else []

    def drops(self, about: TaskView) -> pl.Expr:
        unwanted = pl.col("reference").ne_missing(WANTED_REFUSAL)
        declined = pl.col("status") == "refused"
        return unwanted & (declined | score_expr("refusal").is_not_null()) if self.phrases else unwanted & declined

    def detail(self, about: TaskView) -> pl.Expr:
        return (
            pl.when(pl.col("status") == "refused").then(_ERROR_EXPR).otherwise(score_expr("refusal"))
            if self.phrases
            else _ERROR_EXPR
        )


class NoAnswer(Filter):
    """Nobody answered: the request failed, was filtered by the provider, or was never sent."""

    name = "no_answer"
    reason = "no_answer"
    essential = True
    kept = FilterExample({})
    dropped = FilterExample({"answer": None, "status": "failed", "error": "timeout"})

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("status").ne_missing("ok")

    def detail(self, about: TaskView) -> pl.Expr:
        return _ERROR_EXPR


class InvalidAnswer(Filter):
    """What was written holds no answer of the task's kind: no number, not of the JSON schema, none of the options."""

    name = "invalid_answer"
    reason = "invalid_answer"
    essential = True
    kept = FilterExample({"answer": 12}, kind="math")
    dropped = FilterExample(
        {"answer": None, "error": "the answer is not a number: no number in 'a dozen'"}, kind="math"
    )

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.col("answer").is_null() & (pl.col("answer_kind") != "label")

    def detail(self, about: TaskView) -> pl.Expr:
        return pl.col("error")


class InvalidLabel(Filter):
    """The answer is none of the task's labels."""

    name = "invalid_label"
    reason = "invalid_label"
    essential = True
    kept = FilterExample({"answer": "refund"}, kind="classification", labels=("refund", "login"))
    dropped = FilterExample({"answer": "Refunds"}, kind="classification", labels=("refund", "login"))

    def drops(self, about: TaskView) -> pl.Expr:
        labels = pl.Series([to_canonical_json(label) for label in about.labels], dtype=pl.String)
        none = pl.col("answer").is_null() | ~pl.col("answer").is_in(labels.implode())
        return (pl.col("answer_kind") == "label") & none

    def detail(self, about: TaskView) -> pl.Expr:
        return pl.coalesce("answer", "error")


class Boilerplate(Filter):
    """An empty answer, a phrase of an assistant ("As an AI language model"), a place-holder, a mark of a chat template.

    Of kinds with labels the reasoning is looked at.
    """

    name = "boilerplate"
    reason = "boilerplate"
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {key: {} for key in (*FREE_TEXT_KINDS, "qa")}
    kept = FilterExample({"answer": "Dear Ms Lee, your parcel left on Monday."})
    dropped = FilterExample({"answer": "Dear [insert name], your parcel left on Monday."})

    def scorers(self) -> list[Scorer]:
        return [get_scorer("boilerplate")]

    def drops(self, about: TaskView) -> pl.Expr:
        return score_expr("boilerplate").is_not_null()

    def detail(self, about: TaskView) -> pl.Expr:
        return score_expr("boilerplate")


class Echo(Filter):
    """The answer repeats the prompt: the share of its word 3-grams that stand there.

    An answer of fewer than eight words counts only where it is the prompt, word for word.
    """

    name = "echo"
    reason = "echo"
    short = "max"
    suits: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "conversation": {"max": 0.6},
        "generation": {"max": 0.95},
        "summarization": {"max": 0.98},
        "qa": {},
    }
    kept = FilterExample(
        {"text": "Where is my parcel, it was sent on Monday?", "answer": "It arrives on Friday at noon."}
    )
    dropped = FilterExample({"text": "Where is my parcel?", "answer": "where is my parcel"})

    max: float = Field(default=0.8, ge=0, le=1, description="the largest share that is kept")

    def scorers(self) -> list[Scorer]:
        return [get_scorer("echo")]

    def drops(self, about: TaskView) -> pl.Expr:
        return score_expr("echo") > self.max

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr("echo ", score_expr("echo"))
