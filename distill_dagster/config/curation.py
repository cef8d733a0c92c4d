"""`curation` of task.yaml: how scored candidates become a dataset."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from distill_dagster.config.balance import BalanceSpec
from distill_dagster.config.base import ConfigModel
from distill_dagster.config.dedup import DecontaminationSpec, DedupSpec, expand_switch
from distill_dagster.config.shift import ShiftSpec


class CurationSpec(ConfigModel):
    filters: dict[str, Any] = Field(
        default={}, description="thresholds and filters by name; `curation.filters.settings` validates them"
    )
    mix_examples: bool = Field(
        default=True, description="train on examples.jsonl too, beside the teacher's answers; human.jsonl always is"
    )
    human_weight: Annotated[float, Field(gt=0, le=100)] = Field(
        default=1.0, description="what a row that a person answered counts in training; one of the teacher counts 1"
    )
    dedup: DedupSpec = DedupSpec()
    decontamination: DecontaminationSpec | None = Field(
        default=DecontaminationSpec(), description="false: only rows with the very text of a golden or dev row leave"
    )
    balance: BalanceSpec = BalanceSpec()
    shift: ShiftSpec = ShiftSpec()
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    stratify: Literal["label", "slice"] | None = Field(
        default=None,
        description="every label, or slice, has its share of validation; by default rows are drawn one by one, and "
        "none changes its side whatever else comes or goes",
    )
    min_rows: Annotated[int, Field(ge=1)] = Field(default=20, description="fewer kept rows block training")
    min_slices: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="fewer slices that give rows (the last good ones count) block training; by default nine in ten",
    )
    seed: int = 0

    @field_validator("decontamination", mode="before")
    @classmethod
    def _switched(cls, value: Any) -> Any:
        return expand_switch(value)

    def compute_min_slices(self, slices: int) -> int:
        """How many of that many slices have to give rows."""
        return min(slices, self.min_slices) if self.min_slices is not None else math.ceil(0.9 * slices)
