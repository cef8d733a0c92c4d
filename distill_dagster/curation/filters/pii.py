"""Filter `pii`: personal data."""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from distill_dagster.curation.filters.base import FilterExample, score_expr
from distill_dagster.curation.filters.private_data_filter import PrivateDataFilter
from distill_dagster.curation.task_view import TaskView

PiiKind = Literal["EMAIL", "PHONE", "IBAN", "CARD"]
PII_KINDS: tuple[PiiKind, ...] = ("EMAIL", "PHONE", "IBAN", "CARD")


class Pii(PrivateDataFilter):
    """The prompt, the reasoning or the answer contains personal data: e-mail addresses, phone numbers, IBANs or cards.

    Formats and check digits find them (phonenumbers, python-stdnum). National phone numbers are those of
    `inbox.phone_regions`. Names and street addresses are not found.
    """

    name = "pii"
    reason = "personal_data"
    kept = FilterExample({"answer": "Write to the address on your invoice."})
    dropped = FilterExample({"answer": "Write to jane.doe@example.org for help."})

    kinds: tuple[PiiKind, ...] = Field(default=PII_KINDS, min_length=1, description="the kinds that are looked for")

    def found_expr(self) -> pl.Expr:
        return score_expr("pii").str.contains("|".join(self.kinds))

    def detail_expr(self, task: TaskView) -> pl.Expr:
        return score_expr("pii")
