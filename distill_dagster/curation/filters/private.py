"""Personal data and secrets in prompts and in what the teacher wrote: dropped or masked."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import Filter, FilterExample, detail_expr, get_scorer, score_expr
from distill_dagster.curation.scores import Scorer
from distill_dagster.curation.task_view import TaskView

PiiKind = Literal["EMAIL", "PHONE", "IBAN", "CARD"]
PII_KINDS: tuple[PiiKind, ...] = ("EMAIL", "PHONE", "IBAN", "CARD")


class _PrivateDataFilter(Filter):
    short = "action"

    action: Literal["drop", "mask"] = Field(
        default="drop", description="drop the row, or replace what was found by its kind, such as <EMAIL>"
    )

    def scorers(self) -> list[Scorer]:
        return [get_scorer("private")]

    def masks(self) -> bool:
        return self.action == "mask"

    def found(self) -> pl.Expr:
        raise NotImplementedError

    def drops(self, about: TaskView) -> pl.Expr:
        return pl.lit(False) if self.masks() else self.found()


class Secrets(_PrivateDataFilter):
    """A key, token or password stands in the prompt, the reasoning or the answer (detect-secrets and more patterns)."""

    name = "secrets"
    reason = "secret"
    kept = FilterExample({"answer": "Set the variable to your key, and keep the key to yourself."})
    dropped = FilterExample({"answer": "Sign in, the password is pa55-of-the-p4rcel, and look."})

    def found(self) -> pl.Expr:
        return score_expr("secrets") > 0

    def detail(self, about: TaskView) -> pl.Expr:
        return detail_expr(score_expr("secrets"), " found")


class Pii(_PrivateDataFilter):
    """Personal data stands in the prompt, the reasoning or the answer: mail addresses, phone numbers, IBANs, cards.

    Found by formats and check digits (phonenumbers, python-stdnum). Names and street addresses are not found.
    """

    name = "pii"
    reason = "personal_data"
    kept = FilterExample({"answer": "Write to the address on your invoice."})
    dropped = FilterExample({"answer": "Write to jane.doe@example.org for help."})

    kinds: tuple[PiiKind, ...] = Field(default=PII_KINDS, min_length=1, description="what is looked for")

    def found(self) -> pl.Expr:
        return score_expr("pii").str.contains("|".join(self.kinds))

    def detail(self, about: TaskView) -> pl.Expr:
        return score_expr("pii")
