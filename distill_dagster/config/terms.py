"""Settings about the terms under which a provider answers."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill_dagster.config.base import SWITCH, ConfigModel


class TermsSpec(ConfigModel):
    """The provider's terms on training with the teacher's answers. Never part of a request."""

    acknowledged: bool = Field(default=False, description="you have read the terms and may train with the answers")
    restricts: Annotated[Literal["yes", "no"] | None, SWITCH] = Field(
        default=None, description="whether the terms restrict training with answers; needs url, quote and date_read"
    )
    url: Annotated[str, Field(max_length=2000)] | None = Field(
        default=None, description="address of the terms that you read"
    )
    quote: Annotated[str, Field(min_length=10, max_length=5000)] | None = Field(
        default=None, description="the clause, word for word"
    )
    date_read: date | None = Field(default=None, description="the day on which you read them")
    note: Annotated[str, Field(max_length=2000)] | None = Field(
        default=None, description="copied into every release card"
    )

    @field_validator("restricts", mode="before")
    @classmethod
    def _expand_boolean(cls, value: Any) -> Any:
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/]+\S*", value):
            raise ValueError("the address of the terms must begin with http:// or https://")
        return value

    @field_validator("date_read")
    @classmethod
    def _check_date(cls, value: date | None) -> date | None:
        if value is not None and value > date.today() + timedelta(days=1):  # one day for other time zones
            raise ValueError("the date on which the terms were read is in the future")
        return value

    @model_validator(mode="after")
    def _check_statement(self) -> TermsSpec:
        statement = (self.restricts, self.url, self.quote, self.date_read)
        if any(statement) and not all(statement):
            raise ValueError("a statement on terms needs restricts, url, quote and date_read")
        return self
