"""Settings of checkpoints."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill_dagster.config.base import ConfigModel


class CheckpointSpec(ConfigModel):
    """How often a training is saved, so that it goes on after its process ended. The weights do not depend on it."""

    every_steps: Annotated[int, Field(ge=1)] | None = Field(
        default=50,
        description="steps of training after which it is saved again; a training that was killed goes on from there; "
        "null: never, a killed training starts over",
    )
