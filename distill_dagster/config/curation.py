"""`curation` of task.yaml: how scored candidates become a dataset."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from distill_dagster.config.balance import BalanceSpec
from distill_dagster.config.base import SWITCH, ConfigModel
from distill_dagster.config.dedup import DecontaminationSpec, DedupSpec, expand_switch
from distill_dagster.config.shift import ShiftSpec


class CurationSpec(ConfigModel):
    """`curation` of task.yaml. A change cuts the dataset again and asks no teacher."""

    filters: dict[str, Any] = Field(
        default={}, description="thresholds and filters by name; `curation.filters.settings` validates them"
    )
    mix_examples: bool = Field(
        default=True,
        description="train on examples.jsonl too, next to the teacher's answers",
    )
    mix_human: bool = Field(default=True, description="train on human.jsonl too, next to the teacher's answers")
    human_weight: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0,
        description="the weight in training of a row that a person answered; a row of the teacher has weight 1",
    )
    rescale_soft_labels: Literal["none", "temperature"] = Field(
        default="none",
        description="temperature: soft labels of the dataset become as sure as the teacher is right on dev, by a "
        "temperature per teacher that is fitted on dev",
    )
    dedup: DedupSpec = DedupSpec()
    decontamination: Annotated[DecontaminationSpec | None, SWITCH] = Field(
        default=DecontaminationSpec(),
        description="false: only rows with exactly the text of a golden or dev row are dropped",
    )
    balance: BalanceSpec = BalanceSpec()
    shift: ShiftSpec = ShiftSpec()
    validation_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.1, description="share of the teacher's rows that measure how well the student follows it"
    )
    stratify: Literal["label", "slice"] | None = Field(
        default=None,
        description="give every label, or slice, the same share of validation rows; by default the split of a row does "
        "not depend on other rows",
    )
    min_rows: Annotated[int, Field(ge=1)] = Field(default=20, description="fewer kept rows block training")
    min_slices: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="fewer slices with rows, current or last good ones, block training; by default 90% of the slices",
    )
    seed: int = Field(default=0, description="seed of the split and of random choices")

    @field_validator("decontamination", mode="before")
    @classmethod
    def _expand_switch(cls, value: Any) -> Any:
        return expand_switch(value)

    def compute_min_slices(self, slices: int) -> int:
        """The number of slices that need rows, out of `slices`, before a student is trained."""
        return min(slices, self.min_slices) if self.min_slices is not None else math.ceil(0.9 * slices)
