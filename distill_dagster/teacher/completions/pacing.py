"""Send times and waits that all processes share which ask one provider, in the completion store's database.

A send time is taken in the transaction that reserves the cost of a request. Two send times are so far apart that no
minute at the provider has more requests or tokens than declared, even if a request comes late by `LATE_S + PATH_S`.
This is the spacing of a leaky bucket without a burst (GCRA: ITU-T I.371), with the database's clock.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from distill_dagster.config import TeacherSpec
from distill_dagster.config.deployment import TeacherLimitsSpec
from distill_dagster.core.databases import insert_if_new
from distill_dagster.core.hashing import hash_content
from distill_dagster.teacher.providers import rate_limits

MINUTE_S = 60.0
LATE_S = 1.0
"""A process may use a send time this much late. After that it needs another one."""
PATH_S = 1.0
"""A request may take this much longer to the provider than another one."""
BURST_S = 0.5
"""After a silence, this much of the time that has passed may be used at once. Less than `LATE_S`."""
HORIZON_S = 5.0
"""Send times are given this far ahead, so a process that dies takes at most this much of the limit with it."""
LOOK_INTERVAL_S = 1.0
"""Without limits, a process looks this often whether another one was asked to wait."""

METADATA = sa.MetaData()
PACING = sa.Table(
    "provider_pacing",  # one row per provider; times are in seconds since the epoch, by the database's clock
    METADATA,
    sa.Column("provider", sa.String(64), primary_key=True),
    sa.Column("sent_at", sa.Float, nullable=False),
    sa.Column("sent_tokens", sa.Integer, nullable=False),
    sa.Column("closed_until", sa.Float, nullable=False),
    sa.Column("closed_at", sa.Float, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
_EMPTY_ROW: dict[str, Any] = {"sent_at": 0.0, "sent_tokens": 0, "closed_until": 0.0, "closed_at": 0.0, "reason": ""}
_looked_at: dict[str, float] = {}


@dataclass(frozen=True)
class Pace:
    """The limits of one provider, which all processes share. None stands for no limit."""

    provider: str
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrency: int | None = None
    """Largest number of requests of all processes at the same time."""
    started: float = field(default_factory=time.monotonic, compare=False)
    """When this process began to ask."""

    @property
    def has_rate(self) -> bool:
        """Whether requests or tokens per minute are limited."""
        return self.requests_per_minute is not None or self.tokens_per_minute is not None

    def compute_gap(self, tokens_before: int, tokens: int) -> float:
        """Seconds between the send times of two requests in a row with at most so many tokens.

        With `limit` tokens in `window` seconds the gap is `window * n / (limit + 1 - n)`, where n is the larger one of
        the two requests. Of requests with more than `limit` tokens in sum, leave out the smallest one: each of the
        others has a gap of its own at its side, so the gaps sum to at least `window`.
        """
        window, gap = MINUTE_S + LATE_S + PATH_S, 0.0
        if self.requests_per_minute is not None:
            gap = window / self.requests_per_minute
        if (limit := self.tokens_per_minute) is not None:
            larger = min(max(tokens_before, tokens), limit)  # a request above the limit has a window of its own
            gap = max(gap, min(window, window * larger / (limit + 1 - larger)))
        return gap


def build_pace(spec: TeacherSpec, shared: TeacherLimitsSpec) -> Pace:
    """The limits of a teacher: of what the task and the deployment declare, the lower."""

    def lower(one: int | None, other: int | None) -> int | None:
        return min((limit for limit in (one, other) if limit is not None), default=None)

    return Pace(
        hash_provider(spec),
        lower(spec.requests_per_minute, shared.requests_per_minute),
        lower(spec.tokens_per_minute, shared.tokens_per_minute),
        shared.concurrency,
    )


def hash_provider(spec: TeacherSpec) -> str:
    """The name of what has limits of its own: a teacher with another address, model or key variable is another one."""
    return hash_content([spec.model, spec.api_base, spec.api_key_env])


@dataclass(frozen=True)
class Wait:
    """No request may be sent for `seconds`. With a reason, the provider asked for it."""

    seconds: float
    reason: str | None = None


class Schedule:
    """The send times of one provider within one transaction. The transaction holds the store's write lock."""

    def __init__(self, connection: sa.Connection, provider: str) -> None:
        self._connection, self._provider = connection, provider
        row = connection.execute(sa.select(PACING).where(PACING.c.provider == provider)).mappings().first()
        self._row, self._is_new, self._is_changed = _EMPTY_ROW | dict(row or {}), row is None, False
        self._now, self._read_at = _read_clock(connection), time.monotonic()
        if self._row["sent_at"] > self._now + HORIZON_S + LATE_S:  # the clock was set back
            self._row["sent_at"] = self._now

    def take(self, pace: Pace, tokens: int) -> float | Wait | None:
        """Take the next send time.

        Args:
            pace: the limits that this request keeps.
            tokens: the most that the request can take.

        Returns:
            When to send, by this process's monotonic clock; None for at once; or how long to wait before asking again.
        """
        row, now = self._row, self._now
        if (closed_s := row["closed_until"] - now) > 0 and self._is_heeded(closed_s, pace.started):
            return Wait(closed_s, row["reason"])
        if not pace.has_rate:
            return None
        send = max(row["sent_at"] + pace.compute_gap(row["sent_tokens"], tokens), now - BURST_S)
        if send > now + HORIZON_S:
            # At least half the horizon: whoever comes earlier finds it full of the send times of others.
            return Wait(max(send - now - HORIZON_S, HORIZON_S / 2))
        row["sent_at"], row["sent_tokens"], self._is_changed = send, tokens, True
        return self._read_at + send - now

    def _is_heeded(self, closed_s: float, started: float) -> bool:
        """Whether a wait concerns this process. A long one that was known before it started does not: it tries."""
        began = self._now - (time.monotonic() - started)
        is_new = began < self._row["closed_at"] < self._now + HORIZON_S
        return closed_s <= rate_limits.MAX_WAIT_S or is_new

    def write(self) -> None:
        """Write the newest send time."""
        if not self._is_changed:
            return
        connection, provider = self._connection, self._provider
        if self._is_new:
            connection.execute(insert_if_new(connection.engine, PACING), _EMPTY_ROW | {"provider": provider})
        values = {name: self._row[name] for name in ("sent_at", "sent_tokens")}  # the others may change meanwhile
        connection.execute(_update(provider).values(**values))


def read_schedule(connection: sa.Connection, pace: Pace) -> Schedule | None:
    """Read the schedule of a provider. None if there is none to keep: without limits a look now and then is enough."""
    looked_at = _looked_at.get(pace.provider)
    if not pace.has_rate and looked_at is not None and time.monotonic() - looked_at < LOOK_INTERVAL_S:
        return None
    _looked_at[pace.provider] = time.monotonic()
    return Schedule(connection, pace.provider)


def note_wait(database: sa.Engine, provider: str, wait_s: float, reason: str) -> None:
    """Note that a provider asks all processes to send nothing for `wait_s` seconds. Of several, the longest counts.

    The table must exist.
    """
    with database.begin() as connection:
        connection.execute(insert_if_new(database, PACING), _EMPTY_ROW | {"provider": provider})
        now = _read_clock(connection)
        values = {"closed_until": now + wait_s, "closed_at": now, "reason": reason}
        connection.execute(_update(provider).where(PACING.c.closed_until < now + wait_s).values(**values))


def clear_wait(database: sa.Engine, provider: str, before: float) -> None:
    """End a wait that was noted before this time, in seconds since the epoch: the provider has answered since."""
    with database.begin() as connection:
        noted = sa.and_(PACING.c.provider == provider, PACING.c.closed_at < before, PACING.c.closed_until > before)
        if connection.execute(sa.select(PACING.c.provider).where(noted)).first():
            connection.execute(_update(provider).where(noted).values(closed_until=0.0))


def _update(provider: str) -> sa.Update:
    return sa.update(PACING).where(PACING.c.provider == provider)


def _read_clock(connection: sa.Connection) -> float:
    """Seconds since the epoch. All processes that use one SQLite file are on one machine and share its clock."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.scalar(sa.select(sa.extract("epoch", sa.func.clock_timestamp()))) or 0.0)
