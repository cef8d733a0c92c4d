"""When a refresh is overdue."""

from __future__ import annotations

from datetime import timedelta

import pytest

from distill_dagster.config import RefreshSpec


@pytest.mark.parametrize(
    ("cron", "interval"),
    [
        ("* * * * *", timedelta(minutes=1)),
        ("0 3 * * *", timedelta(days=1)),
        ("*/10 9-17 * * 1-5", timedelta(days=2, hours=15, minutes=10)),  # over the weekend
        ("0 8-20/4 * * 1-5", timedelta(days=2, hours=12)),
        ("30 2 * * 1", timedelta(days=7)),
        ("0 12 * * 1#1", timedelta(days=35)),
        ("5 4 1,15 * *", timedelta(days=17)),
        ("0 0 L * *", timedelta(days=31)),
        ("0 0 31 * *", timedelta(days=61)),
        ("* * 1 1 *", timedelta(days=365, minutes=1)),  # many ticks of one day
        ("0 0 29 2 *", timedelta(days=4 * 365 + 1)),
    ],
)
def test_a_refresh_is_overdue_after_twice_the_longest_interval(cron: str, interval: timedelta) -> None:
    assert RefreshSpec(cron=cron).compute_max_age() == 2 * interval


def test_a_refresh_is_overdue_when_task_yaml_says_so_or_never() -> None:
    assert RefreshSpec(cron="0 3 * * *", max_age_hours=5).compute_max_age() == timedelta(hours=5)
    assert RefreshSpec(cron=None).compute_max_age() is None
