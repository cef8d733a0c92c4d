"""What a task says of the terms under which a teacher answers."""

from __future__ import annotations

import re
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from distill_dagster.config.base import ConfigModel


class TermsSpec(ConfigModel):
    """What a task says of the provider's terms on training with the teacher's answers. Never part of a request."""

    acknowledged: bool = Field(default=False, description="you have read the terms and may train with the answers")
    restricts: Literal["yes", "no"] | None = Field(
        default=None, description="do they restrict training with answers; wants url, quote and date_read with it"
    )
    url: Annotated[str, Field(max_length=2000)] | None = None
    quote: Annotated[str, Field(min_length=10, max_length=5000)] | None = Field(
        default=None, description="the clause, word for word"
    )
    date_read: date | None = None
    note: Annotated[str, Field(max_length=2000)] | None = Field(default=None, description="carried into every card")

    @field_validator("restricts", mode="before")
    @classmethod
    def _yaml_yes(cls, value: Any) -> Any:
        return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value  # YAML reads yes and no so

    @field_validator("url")
    @classmethod
    def _web_address(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"https?://[^\s/]+\S*", value):
            raise ValueError("the address of the terms begins with https://")
        return value

    @field_validator("date_read")
    @classmethod
    def _not_to_come(cls, value: date | None) -> date | None:
        if value is not None and value > date.today() + timedelta(days=1):  # a day: the clock of another zone
            raise ValueError("the day on which the terms were read is still to come")
        return value

    @model_validator(mode="after")
    def _whole(self) -> TermsSpec:
        told = (self.restricts, self.url, self.quote, self.date_read)
        if any(told) and not all(told):
            raise ValueError(
                "a statement on terms wants restricts, url, quote and date_read; without them it is unknown"
            )
        return self
