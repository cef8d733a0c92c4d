"""Who judges the answers, and by what."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from distill_dagster.config.auxiliary_teacher import AuxiliaryTeacherSpec
from distill_dagster.config.base import ConfigModel


class CriterionSpec(ConfigModel):
    """One line of a judge's rubric."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]{0,40}$")]
    description: Annotated[str, Field(min_length=1)]


class JudgeSpec(AuxiliaryTeacherSpec):
    """A second model that scores every candidate by a rubric, or picks the best of differing samples."""

    mode: Literal["score", "best_of"] = Field(
        default="score", description="score: 1 to 5 per criterion, with a reason; best_of: which of the samples to keep"
    )
    rubric: Annotated[list[CriterionSpec], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    max_tokens: Annotated[int, Field(ge=1, le=100_000)] = 1000
    min_success: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.9, description="share of answers below which the asset fails instead of passing on partial results"
    )

    @field_validator("rubric")
    @classmethod
    def _unique(cls, value: list[CriterionSpec]) -> list[CriterionSpec]:
        for n, one in enumerate(value):
            if one.name in [other.name for other in value[:n]]:
                raise ValueError(f"criterion {one.name!r} stands twice")
        return value

    def judge_settings(self) -> dict[str, Any]:
        """The settings that can change what the judge says."""
        return self.asked_settings() | self.model_dump(include={"mode", "rubric", "temperature", "max_tokens"})
