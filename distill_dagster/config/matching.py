"""Objectives of a student that imitates the layers of a deeper model: `hidden_state` and `attention`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill_dagster.config.base import ConfigModel

Layer = Annotated[int, Field(ge=1, le=1000)]


class _MatchingObjectiveSpec(ConfigModel):
    match_weight: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0, description="weight of the difference between the layers in the loss; that of the labels is 1"
    )
    layers: dict[Layer, Layer] | None = Field(
        default=None,
        description="for a layer of the student, the layer of the teacher that it imitates, counted from 1 at the "
        "input, such as {3: 6}; by default every layer imitates the one that `shrink` keeps for it",
    )
    weight: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5, description="share of the teacher's probabilities in the loss of the labels; the rest is the label"
    )
    temperature: Annotated[float, Field(gt=0, le=20)] = Field(
        default=1.0, description="of the teacher's probabilities, as for soft_label"
    )


class HiddenStateObjectiveSpec(_MatchingObjectiveSpec):
    """Learn labels as `soft_label` does, and the hidden states of a deeper encoder (Jiao et al. 2020, "TinyBERT").

    The deeper encoder is the student's model before `shrink` or, with `teacher: student:<name>`, that student.
    """

    kind: Literal["hidden_state"] = Field(description="hidden_state")


class AttentionObjectiveSpec(_MatchingObjectiveSpec):
    """Learn labels as `soft_label` does, and where a deeper encoder attends (Wang et al. 2020, "MiniLM").

    The deeper encoder is the student's model before `shrink` or, with `teacher: student:<name>`, that student. Both
    need equally many attention heads.
    """

    kind: Literal["attention"] = Field(description="attention")
