"""Settings of the evaluation, and of the gate that the teacher passes before slices are paid for."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from distill_dagster.config.base import ConfigModel

MACHINE_USD_PER_HOUR = 0.10
"""An assumption: about what a machine with 2 cores is rented for."""


class EvaluationSpec(ConfigModel):
    """How systems are compared."""

    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = Field(
        default=2000, description="resamples of the items behind each interval"
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        default=0.95, description="level of the intervals and tests"
    )
    judged_items: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None,
        description="for how many golden items the judge says whose answer is better, the student's or the teacher's: "
        "asked twice, with the order swapped; for answers that are written texts; needs `judge`; null: it is not asked",
    )
    latency_items: Annotated[int, Field(ge=1, le=10_000)] = Field(
        default=40, description="how many golden items are timed one by one; a change applies to the next predictions"
    )
    machine_usd_per_hour: Annotated[float, Field(ge=0)] | None = Field(
        default=MACHINE_USD_PER_HOUR,
        description="price in USD of an hour of the machine that trains the student and answers with it, and with an "
        "embedded teacher; by default about that of a rented machine with 2 cores; null: unknown",
    )
    margin: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.05,
        description="how far the student's score may be below the teacher's and still count as equal: the report "
        "says whether the items show that (non-inferiority)",
    )
    requests_per_day: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="how many requests a day the student would answer: the report says in how many days it has paid "
        "for itself; null: only in how many requests",
    )
    seed: int = Field(default=0, description="seed of the resamples")

    @model_validator(mode="before")
    @classmethod
    def _read_old_name(cls, value: Any) -> Any:
        """Read `student_usd_per_hour`, the name of `machine_usd_per_hour` in earlier versions."""
        if not isinstance(value, dict) or "student_usd_per_hour" not in value:
            return value
        if "machine_usd_per_hour" in value:
            raise ValueError("student_usd_per_hour is the old name of machine_usd_per_hour; remove it")
        rest = {name: setting for name, setting in value.items() if name != "student_usd_per_hour"}
        return rest | {"machine_usd_per_hour": value["student_usd_per_hour"]}


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
