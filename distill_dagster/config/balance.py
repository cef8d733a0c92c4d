"""`curation.balance` of task.yaml: caps and floors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from distill_dagster.config.base import ConfigModel

RowCount = Annotated[int, Field(ge=0)]
RowCounts = RowCount | dict[str, RowCount]


class BalanceSpec(ConfigModel):
    """`curation.balance` of task.yaml. A field is `slice`, `label`, or the name of an axis of imagined prompts."""

    max_rows: Annotated[int, Field(ge=1)] | None = Field(default=None, description="most rows of the whole dataset")
    caps: dict[str, RowCounts] = Field(
        default={}, description="by field, the most rows of each value, or a number for each named value"
    )
    floors: dict[str, RowCounts] = Field(
        default={},
        description="by field, rows of each value that max_rows does not cut, and up to which rows below the filter "
        "min_confidence stay, the most confident first; a check warns of values with fewer",
    )
    choice: Literal["best", "random", "diverse"] = Field(
        default="best",
        description="the rows that stay: those with the highest confidence, random ones, or those with the most "
        "different embeddings. Rows that people answered always come first",
    )

    @field_validator("caps", "floors")
    @classmethod
    def _check_names(cls, value: dict[str, RowCounts]) -> dict[str, RowCounts]:
        for field in value:
            if not field.strip():
                raise ValueError("a field has no name; use slice, label, or an axis of `imagine`")
        return value

    @property
    def has_limits(self) -> bool:
        """Whether it can leave out rows."""
        return self.max_rows is not None or bool(self.caps)
