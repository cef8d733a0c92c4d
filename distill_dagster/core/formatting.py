"""Numbers in sentences: counts with their noun, durations, times, money."""

from __future__ import annotations

import math
from datetime import UTC, datetime


def count_noun(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 slice`, `2,000 slices`. `plural` is for nouns that do not just get an s."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def format_clock(seconds: float) -> str:
    """`0:42`, `12:05` or `1:02:30`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_seconds(seconds: float) -> str:
    """`0.4 s`, `42 s`, `12 min 5 s` or `1 h 2 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_time(epoch: float) -> str:
    """A point in time, rounded up to the minute: `2026-01-31 14:05 UTC`."""
    return datetime.fromtimestamp(60 * math.ceil(epoch / 60), UTC).strftime("%Y-%m-%d %H:%M UTC")


def format_usd(usd: float) -> str:
    """USD with two digits after the point, and with four below one cent: `$1.23`, `$0.0012`."""
    return f"${usd:,.2f}" if usd >= 0.01 or not usd else f"${usd:.4f}"


def format_bytes(number: int) -> str:
    """A size in decimal units: 1.5 GB, 820 MB."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
