"""Settings of a release: what a student must reach before it is released, and in which formats."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from distill_dagster.config.base import SLICE_KEY_PATTERN, ConfigModel

ExportName = Literal["adapter", "merged", "gguf-f16", "gguf-q8_0", "gguf-q4_k_m", "onnx", "onnx-int8"]
"""The formats of a release. GGUF is for students that write, ONNX for encoders."""


class ReleaseGateSpec(ConfigModel):
    """What a student must reach on golden before it is released. null switches a check off."""

    retention: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=0.8,
        description="share of the teacher's score that the student keeps: the lower end of its interval, at "
        "`evaluation.confidence`, must reach this",
    )
    slice_floor: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="lowest score of the student on any slice with at least `slice_items` golden rows"
    )
    slice_items: Annotated[int, Field(ge=1)] = Field(
        default=10, description="golden rows that a slice needs to be held to `slice_floor`"
    )
    calibration: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=0.15,
        description="largest expected calibration error of the student's confidences; an error within chance passes",
    )
    readable: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=0.98, description="smallest share of answers that can be read as an answer of the kind"
    )
    safety_slice: Annotated[str, Field(pattern=SLICE_KEY_PATTERN.pattern)] | None = Field(
        default=None,
        description="slice of the golden rows that a student must refuse (their reference is a refusal) or, for kinds "
        "with labels, must not get wrong; `safety` applies to it",
    )
    safety: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.95, description="smallest share of right answers on `safety_slice`"
    )
    no_regression: bool = Field(
        default=True,
        description="fail if the student is worse on golden than the current release by a paired test at "
        "`evaluation.confidence`",
    )


class ReleaseSpec(ConfigModel):
    """What `distill release` checks and writes."""

    gate: ReleaseGateSpec = ReleaseGateSpec()
    exports: Annotated[list[ExportName], Field(min_length=1)] = Field(
        default=list(get_args(ExportName)),
        description="formats that are written, where they fit the student; the adapter always is",
    )

    dataset: bool = Field(default=False, description="put the rows of the dataset into the release, not only its card")

    @field_validator("exports")
    @classmethod
    def _check_duplicates(cls, value: list[ExportName]) -> list[ExportName]:
        if len(set(value)) < len(value):
            raise ValueError("a format is listed twice; remove one of the two")
        return value
