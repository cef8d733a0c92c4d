"""Settings of automatic refreshes."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice, pairwise
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator

from distill_dagster.config.base import ConfigModel


class RefreshSpec(ConfigModel):
    """When a refresh runs automatically, and when it trains a student again."""

    cron: str | None = Field(
        default="0 3 * * *",
        description="when the schedule refreshes: minute, hour, day, month, weekday; null: never",
    )
    timezone: str = Field(default="UTC", description="time zone of `cron`, such as Europe/Berlin")
    min_new_rows: Annotated[int, Field(ge=0)] = Field(
        default=0, description="a student is trained again if more rows than this were added, removed or changed"
    )
    max_age_hours: Annotated[float, Field(ge=1 / 60, le=100_000)] | None = Field(
        default=None,
        description="age of an overdue refresh; by default twice the longest interval of `cron`",
    )

    @field_validator("cron")
    @classmethod
    def _check_cron(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            if len(value.split()) != 5:  # a sixth field is seconds, which Dagster does not support
                raise CronSimError("it needs five fields")
            CronSim(value, datetime(2026, 1, 1))
            days, weekdays = value.upper().split()[2], value.upper().split()[4]
            if "W" in days or ("L" in days and "/" in days) or "L" in weekdays:
                raise CronSimError("W, and L in a weekday, are not supported")
        except CronSimError as error:
            raise ValueError(
                f"not a cron expression: {str(error).lower()}; use for example 0 3 * * * for 3:00 every night"
            ) from None
        return value

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("not a time zone; use a name such as UTC or Europe/Berlin") from None
        return value

    def compute_max_age(self) -> timedelta | None:
        """The age at which the last refresh is overdue, or None if nothing refreshes automatically."""
        if self.max_age_hours is not None:
            return timedelta(hours=self.max_age_hours)
        if self.cron is None:
            return None
        ticks = list(islice(CronSim(self.cron, datetime(2026, 1, 1)), 60))
        return 2 * max(later - earlier for earlier, later in pairwise(ticks))
