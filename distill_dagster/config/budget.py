"""Settings of a task's budget for teachers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill_dagster.config.base import ConfigModel


class BudgetSpec(ConfigModel):
    """Hard caps on a task's spending on teachers. A request that might exceed one is not sent."""

    usd: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="cap of one campaign: one command, backfill or refresh"
    )
    tokens: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="cap of one campaign in tokens of prompts and answers"
    )
    month_usd: Annotated[float, Field(ge=0)] | None = Field(default=None, description="cap of a calendar month (UTC)")
    month_tokens: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="cap of a calendar month (UTC) in tokens"
    )

    @property
    def has_usd_cap(self) -> bool:
        """Whether a cap is in USD: then every price must be known."""
        return self.usd is not None or self.month_usd is not None

    @property
    def has_caps(self) -> bool:
        """Whether there is any cap."""
        return self != BudgetSpec()

    def lower_to(self, other: BudgetSpec) -> BudgetSpec:
        """The lower of both budgets, cap by cap."""
        lower = {}
        for name in BudgetSpec.model_fields:
            caps = [cap for cap in (getattr(self, name), getattr(other, name)) if cap is not None]
            lower[name] = min(caps, default=None)
        return BudgetSpec(**lower)
