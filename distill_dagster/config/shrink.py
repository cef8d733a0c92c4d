"""`students.<name>.shrink` of task.yaml: a student with fewer layers than its model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill_dagster.config.base import ConfigModel


class ShrinkSpec(ConfigModel):
    """Keep some layers of the model, and remove the others before training. So the student answers faster."""

    layers: Annotated[int, Field(ge=1, le=200)] = Field(
        description="how many layers to keep: the first, the last, and layers evenly between them"
    )
    start: Literal["model", "teacher"] = Field(
        default="model",
        description="what the layers are at first. model: those of the base as it was downloaded; teacher: those of "
        "the trained student in `teacher: student:<name>`, with `method: full` and the same `model`",
    )
