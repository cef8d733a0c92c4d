"""`curation.shift`: how far a dataset may be from the last good one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class ShiftSpec(BaseModel):
    """`curation.shift` of task.yaml: how far a dataset may be from the last good one."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_drop_change: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.1, description="by how much the share of candidates that one drop reason takes may rise or fall"
    )
    max_divergence: Annotated[float, Field(ge=0)] = Field(
        default=0.1,
        description="Kullback-Leibler divergence of labels, or of lengths, in nats; what chance may do is free",
    )
    severity: Literal["warning", "error"] = Field(default="warning", description="error: nothing is trained")
