"""Settings of the judge."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from distill_dagster.config.auxiliary_teacher import AuxiliaryTeacherSpec
from distill_dagster.config.base import ConfigModel


class CriterionSpec(ConfigModel):
    """One line of a judge's rubric."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,40}$")] = Field(
        description="a short name; the judge's score is stored under it"
    )
    description: Annotated[str, Field(min_length=1)] = Field(description="what the judge scores from 1 to 5")


class JudgeSpec(AuxiliaryTeacherSpec):
    """A second model that scores every candidate by a rubric, or picks the best of different samples."""

    mode: Literal["score", "best_of"] = Field(
        default="score", description="score: 1 to 5 per criterion, with a reason; best_of: choose the sample to keep"
    )
    rubric: Annotated[list[CriterionSpec], Field(min_length=1)] = Field(
        description="the criteria, each scored on its own"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] = Field(default=0.0, description="randomness of the judge")
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = Field(
        default=1000, description="longest answer of the judge, in tokens"
    )
    min_success: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.9, description="the asset fails if a smaller share of answers is usable"
    )

    @field_validator("rubric")
    @classmethod
    def _check_names(cls, value: list[CriterionSpec]) -> list[CriterionSpec]:
        names = [criterion.name for criterion in value]
        for number, name in enumerate(names):
            if name in names[:number]:
                raise ValueError(f"duplicate criterion {name!r}")
        return value

    def dump_request_settings(self) -> dict[str, Any]:
        """The settings that can change the judge's answers, for hashes."""
        return super().dump_request_settings() | self.model_dump(
            include={"mode", "rubric", "temperature", "max_tokens"}
        )
