"""`curation.balance`: caps and floors."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

RowCount = Annotated[int, Field(ge=0)]


RowCounts = RowCount | dict[str, RowCount]


class BalanceSpec(BaseModel):
    """`curation.balance` of task.yaml. A field is `slice`, `label`, or the name of an axis of imagined prompts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_rows: Annotated[int, Field(ge=1)] | None = Field(default=None, description="of the whole dataset")
    caps: dict[str, RowCounts] = Field(
        default={}, description="by field, the most rows of each value, or a number for each named value"
    )
    floors: dict[str, RowCounts] = Field(
        default={}, description="by field, rows of each value that max_rows does not cut; fewer in all warn"
    )
    choice: Literal["best", "random", "diverse"] = Field(
        default="best",
        description="what stays where rows are cut: the surest ones, any, or those farthest from each other by their "
        "embeddings. Rows that people answered always come first",
    )

    @field_validator("caps", "floors")
    @classmethod
    def _named(cls, value: dict[str, RowCounts]) -> dict[str, RowCounts]:
        for field in value:
            if not field.strip():
                raise ValueError("a field has no name; use slice, label, or an axis of `imagine`")
        return value

    @property
    def cuts(self) -> bool:
        return self.max_rows is not None or bool(self.caps)
