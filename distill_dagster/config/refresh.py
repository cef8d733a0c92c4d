"""Settings of automatic refreshes."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice, pairwise, takewhile
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import Field, field_validator

from distill_dagster.config.base import ConfigModel

WEEKDAYS_SEARCHED, DATES_SEARCHED = timedelta(weeks=3), timedelta(days=5 * 366)
"""Within this time, days of the week repeat, and dates of leap years."""


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
        return 2 * _find_longest_interval(self.cron)


@lru_cache(maxsize=64)
def _find_longest_interval(cron: str) -> timedelta:
    """The longest time between two ticks, within a day or from the last of a day to the first of the next one.

    All days with ticks have them at the same times.
    """
    minute, hour, *days = cron.split()
    start = datetime(2026, 1, 1) - timedelta(minutes=1)  # ticks are later than the start
    times = list(takewhile(lambda tick: tick.day == 1, CronSim(f"{minute} {hour} * * *", start)))
    is_weekly = days[:2] == ["*", "*"] and "#" not in days[2]
    searched = WEEKDAYS_SEARCHED if is_weekly else DATES_SEARCHED
    iterator = CronSim(" ".join(["0 0", *days]), start)
    dates = [*islice(iterator, 2), *takewhile(lambda date: date < start + searched, iterator)]
    within_day = [later - earlier for earlier, later in pairwise(times)]
    between_days = [later - earlier - (times[-1] - times[0]) for earlier, later in pairwise(dates)]
    return max(within_day + between_days, default=DATES_SEARCHED)
