"""Settings of the router: when the released student answers, and when the teacher does."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill_dagster.config.base import ConfigModel


class RoutingSpec(ConfigModel):
    """When the student answers a served request itself, and when the teacher is asked."""

    margin: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=0.01,
        description="largest share of all requests that the student may answer wrongly where the teacher is right; "
        "0.01 takes at least 299 rows to show, 0.03 takes 99",
    )
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = Field(
        default=0.95, description="with which probability the margin holds"
    )
    calibrate_on: Literal["dev", "traffic"] = Field(
        default="dev",
        description="rows that the threshold is chosen on: dev.jsonl with its human answers, or shadowed requests, "
        "where disagreement with the teacher counts as an error",
    )
    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None,
        description="confidence from which the student answers, instead of one that is calibrated; 0: it answers "
        "everything. Nothing is promised about accuracy",
    )
    shadow_share: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01,
        description="share of the requests answered by the student that the teacher answers too, chosen at random; it "
        "shows drift, and calibrates the next release. Each costs a teacher's answer",
    )
