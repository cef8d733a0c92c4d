"""`students.<name>.data` of task.yaml: which rows of the dataset a student learns from, and how much each counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from distill_dagster.config.base import SLICE_KEY_PATTERN, ConfigModel


class EarlierDatasetSpec(ConfigModel):
    """Rows of an earlier dataset, kept with `distill keep`, so that the student does not forget what they taught."""

    dataset: str = Field(description="the name that the dataset was kept under: datasets/<name>.parquet of the task")
    share: Annotated[float, Field(gt=0, le=0.9)] = Field(
        default=0.1,
        description="most of the training rows that are from the earlier dataset; rows that the dataset of today has, "
        "and rows that repeat golden or dev, are not taken",
    )

    @field_validator("dataset")
    @classmethod
    def _check_name(cls, value: str) -> str:
        if not SLICE_KEY_PATTERN.fullmatch(value):
            raise ValueError(f"{value!r} cannot be the name of a dataset; it must match {SLICE_KEY_PATTERN.pattern}")
        return value


class DataMixSpec(ConfigModel):
    """`students.<name>.data` of task.yaml. It changes one student's training rows, and not the dataset.

    A row that counts k times is in the training rows floor(k) times, each copy with the weight k / floor(k); one that
    counts less than once has the weight k.
    """

    human_factor: Annotated[float, Field(ge=0, le=100)] = Field(
        default=1.0,
        description="how many times a row that a person answered counts, next to `curation.human_weight`; 0: the "
        "student learns from the teacher's answers alone",
    )
    balance: Literal["slices"] | None = Field(
        default=None,
        description="slices: the teacher's answers of every slice count equally much in sum; by default every row does",
    )
    slice_weights: dict[str, Annotated[float, Field(ge=0, le=100)]] = Field(
        default={},
        description="by slice, how many times the teacher's answers count; 0 leaves them out. With `balance: slices` "
        "it is the ratio of the sums",
    )

    replay: EarlierDatasetSpec | None = Field(
        default=None, description="also learn from rows of an earlier dataset; by default from the dataset of today"
    )

    @property
    def is_plain(self) -> bool:
        """Whether all rows of the dataset count once, as they are."""
        return self.human_factor == 1 and self.balance is None and not self.slice_weights
