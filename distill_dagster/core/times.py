"""Points in time and durations in words."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def format_time(epoch: float) -> str:
    """A point in time, rounded up to the minute: `2026-01-31 14:05 UTC`."""
    return datetime.fromtimestamp(60 * math.ceil(epoch / 60), UTC).strftime("%Y-%m-%d %H:%M UTC")


def format_duration(seconds: float) -> str:
    """A duration in its two largest units: `2 d 3 h`, `1 h 5 min`, `40 s`."""
    rest, parts = max(0, round(seconds)), list[str]()
    for name, size in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {name}")
        elif parts:
            break
    return " ".join(parts[:2]) or "0 s"
