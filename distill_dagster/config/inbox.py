"""Settings of the inbox."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from distill_dagster.config.base import SLICE_KEY_PATTERN, ConfigModel
from distill_dagster.core.patterns import find_pattern_problem


class InboxRuleSpec(ConfigModel):
    """Sends a prompt to a slice if a regular expression matches a field of its record."""

    slice: str = Field(description="the slice that a matching line goes to")
    field: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="the field that is searched; by default the text"
    )
    matches: Annotated[str, Field(min_length=1)] = Field(
        description="a regular expression, found anywhere in the field"
    )

    @field_validator("slice")
    @classmethod
    def _check_slice(cls, value: str) -> str:
        if not SLICE_KEY_PATTERN.fullmatch(value):
            raise ValueError(f"a slice key must match {SLICE_KEY_PATTERN.pattern}")
        return value

    @field_validator("matches")
    @classmethod
    def _check_pattern(cls, value: str) -> str:
        if problem := find_pattern_problem(value):
            raise ValueError(problem)
        return value


DEFAULT_PHONE_REGIONS = ("US", "GB", "DE", "FR")


class InboxSpec(ConfigModel):
    """How lines of files in the inbox become prompts."""

    text_field: Annotated[str, Field(min_length=1)] = Field(
        default="text", description="field of a line that contains the prompt"
    )
    slice_field: Annotated[str, Field(min_length=1)] = Field(
        default="slice", description="field of a line that names its slice"
    )
    rules: list[InboxRuleSpec] = Field(default=[], description="for lines without a slice; the first match applies")
    keep_files: bool = Field(
        default=False, description="keep processed files in done/, unmasked; by default only their summary is kept"
    )
    phone_regions: list[str] = Field(
        default=[*DEFAULT_PHONE_REGIONS],
        description="countries whose national phone numbers are recognised everywhere; +49 … always is",
    )

    @field_validator("phone_regions")
    @classmethod
    def _check_regions(cls, value: list[str]) -> list[str]:
        for region in value:
            if region not in list_phone_regions():
                raise ValueError(f"{region!r} is not a country code such as US or DE")
        return value

    @model_validator(mode="after")
    def _check_fields(self) -> InboxSpec:
        if self.text_field == self.slice_field:
            raise ValueError("text_field and slice_field name the same field")
        return self


def list_phone_regions() -> frozenset[str]:
    """Two-letter countries that `phone_regions` may name."""
    from phonenumbers import SUPPORTED_REGIONS

    return frozenset(SUPPORTED_REGIONS)
