"""What a task may spend on teachers."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from distill_dagster.config.base import ConfigModel


class BudgetSpec(ConfigModel):
    """Hard caps on what a task may spend on teachers; a request that might go beyond one is not sent."""

    usd: Annotated[float, Field(ge=0)] | None = Field(
        default=None, description="of one campaign: one command, backfill or refresh"
    )
    tokens: Annotated[int, Field(ge=0)] | None = None
    month_usd: Annotated[float, Field(ge=0)] | None = Field(default=None, description="of a calendar month (UTC)")
    month_tokens: Annotated[int, Field(ge=0)] | None = None

    @property
    def in_usd(self) -> bool:
        return self.usd is not None or self.month_usd is not None

    @property
    def any(self) -> bool:
        return self != BudgetSpec()

    def capped(self, other: BudgetSpec) -> BudgetSpec:
        """The lower cap of the two, each by itself."""
        lower = {}
        for name in BudgetSpec.model_fields:
            known = [cap for cap in (getattr(self, name), getattr(other, name)) if cap is not None]
            lower[name] = min(known) if known else None
        return BudgetSpec(**lower)
