"""`students.<name>.data` of task.yaml: which rows of the dataset a student learns from, and how much each counts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from distill_dagster.config.base import ConfigModel


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

    @property
    def is_plain(self) -> bool:
        """Whether the student learns from all rows of the dataset as they are."""
        return self.human_factor == 1 and self.balance is None and not self.slice_weights
