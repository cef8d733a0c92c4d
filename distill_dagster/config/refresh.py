"""When a task is brought up to date by itself."""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import islice, pairwise
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator

from distill_dagster.config.base import ConfigModel


class RefreshSpec(ConfigModel):
    """When a refresh runs by itself, and when it trains anew."""

    cron: str | None = Field(
        default="0 3 * * *", description="when the schedule refreshes: minute, hour, day, month, weekday; null: never"
    )
    timezone: str = "UTC"
    min_new_rows: Annotated[int, Field(ge=0)] = Field(
        default=0, description="a student is trained anew where more rows than this came, went or changed"
    )
    max_age_hours: Annotated[float, Field(ge=1 / 60, le=100_000)] | None = Field(
        default=None, description="the last refresh is overdue after this; by default twice the longest wait of `cron`"
    )

    @field_validator("cron")
    @classmethod
    def _five_fields(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            if len(value.split()) != 5:  # a sixth field would be seconds, which Dagster does not know
                raise CronSimError("five fields are wanted")
            CronSim(value, datetime(2026, 1, 1))
            days, weekdays = value.upper().split()[2], value.upper().split()[4]
            if "W" in days or ("L" in days and "/" in days) or "L" in weekdays:
                raise CronSimError("W and L of a weekday are not known here")
        except CronSimError as error:
            raise ValueError(
                f"not a cron expression: {str(error).lower()}; every night at three is 0 3 * * *"
            ) from None
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError("not a time zone; use a name such as UTC or Europe/Berlin") from None
        return value

    def max_age(self) -> timedelta | None:
        """After what time the last refresh is overdue; None where nothing refreshes by itself."""
        if self.max_age_hours is not None:
            return timedelta(hours=self.max_age_hours)
        if self.cron is None:
            return None
        ticks = list(islice(CronSim(self.cron, datetime(2026, 1, 1)), 60))
        return 2 * max(later - earlier for earlier, later in pairwise(ticks))
