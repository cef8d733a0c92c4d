"""`curation.shift` of task.yaml: when a dataset differs too much from the last good one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill_dagster.config.base import ConfigModel


class ShiftSpec(ConfigModel):
    """The largest allowed difference of a dataset from the last good one."""

    max_drop_change: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="the most that a drop reason's share of the candidates may rise or fall"
    )
    max_divergence: Annotated[float, Field(ge=0)] = Field(
        default=0.1,
        description="largest Kullback-Leibler divergence of labels, or of lengths, in nats; differences that chance "
        "explains are always allowed",
    )
    severity: Literal["warning", "error"] = Field(default="warning", description="error blocks training")
