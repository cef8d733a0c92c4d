"""Settings of the evaluation, and of the gate that the teacher passes before slices are paid for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill_dagster.config.base import ConfigModel


class EvaluationSpec(ConfigModel):
    """How systems are compared."""

    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        default=2000, description="resamples of the items behind each interval"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        default=0.95, description="level of the intervals and tests"
    )
    latency_items: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=40, description="how many golden items are timed one by one; a change applies to the next predictions"
    )
    student_usd_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        default=None,
        description="price of the machine that serves the student; without it its cost is unknown",
    )
    seed: int = Field(default=0, description="seed of the resamples")


class GateSpec(ConfigModel):
    """Scores that the teacher must reach on dev before any slice is sent to it."""

    teacher_min: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="lowest score of the teacher on dev, in the metric of the kind"
    )
    teacher_over_base: Annotated[float, Field(ge=-1, le=1)] | None = Field(
        default=0.0,
        description="how far the teacher's score on dev must be above that of the untrained student; null: they are "
        "not compared, and no student model is loaded",
    )
    items: Annotated[int, Field(ge=1)] = Field(default=200, description="largest number of dev rows that are compared")
