"""The ledger: what each attempt at a request may cost at most, and what it cost in the end.

The ledger is a table in the completion store's database, so all runs and processes share it. The worst case of a
request is reserved before it is sent and settled when it ends. A reservation has a lease. If its process dies, it is
settled in full, because the teacher may bill the request: at once on this host, otherwise when the lease expires.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from distill_dagster.config import BudgetSpec
from distill_dagster.core.processes import get_process_name, is_process_gone
from distill_dagster.teacher.completions.pacing import Pace, Schedule, Wait, read_schedule
from distill_dagster.teacher.providers.prices import WorstCase

METADATA = sa.MetaData()
LEDGER = sa.Table(
    "ledger",
    METADATA,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("request_key", sa.String(64), nullable=False, index=True),
    sa.Column("task", sa.String(64), nullable=False),
    sa.Column("campaign", sa.String(64), nullable=False, index=True),
    sa.Column("month", sa.String(7), nullable=False),
    sa.Column("teacher", sa.String(200), nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("mode", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),  # reserved, settled, lost, released
    sa.Column("worst_tokens", sa.Integer, nullable=False),
    sa.Column("worst_usd", sa.Float),
    sa.Column("tokens", sa.Integer),
    sa.Column("usd", sa.Float),
    sa.Column("owner", sa.String(100), nullable=False),
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("reserved_at", sa.String(32), nullable=False),
    sa.Index("ledger_task_month", "task", "month"),
    sa.Index("ledger_state", "state"),
)
NO_CAP = BudgetSpec()
SERVING = "serving"
"""The purpose of requests that a teacher answers in place of a released student."""
LEASE_SLACK_S = 60.0
EXPIRY_INTERVAL_S = 10.0
_KEYS_PER_QUERY = 500
ROUNDING_ERROR = 1e-9
"""Sums of floats may pass a cap by this much."""


@dataclass(frozen=True)
class Account:
    """Who pays for a request: the task, the campaign it belongs to, the purpose of the request, and the caps."""

    task: str
    campaign: str
    purpose: str
    budget: BudgetSpec = NO_CAP


def build_reservation_id() -> str:
    """A new id for a row of the ledger."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Reservation:
    """One attempt at a request that asks for permission to be sent."""

    key: str
    account: Account
    teacher: str
    worst: WorstCase
    lease_s: float
    mode: str = "online"
    pace: Pace | None = None
    """The limits that all processes share. None for a teacher without a provider, and for batches."""
    id: str = field(default_factory=build_reservation_id)


@dataclass(frozen=True)
class Decision:
    """Whether an attempt may be sent.

    - `granted`: the attempt may be sent, at `send_at`.
    - `stored`: the store has the answer by now.
    - `elsewhere`: another process is sending the same request.
    - `batch`: an open batch contains the same request.
    - `full`: reservations leave no room; there may be room when they are settled.
    - `over`: the cap is reached.
    - `busy`: all processes together send as many requests as the deployment allows.
    - `later`: the next send times are taken; ask again in `wait_s`.
    - `closed`: the provider asked one of the processes to wait, for `wait_s` from now.

    `send_at` is by this process's monotonic clock; None stands for at once.
    """

    kind: Literal["granted", "stored", "elsewhere", "batch", "full", "over", "busy", "later", "closed"]
    reason: str = ""
    send_at: float | None = None
    wait_s: float = 0.0


@dataclass(frozen=True)
class BudgetUsage:
    """What is settled, and what is reserved on top of it. USD cover the requests with a known price."""

    usd: float
    tokens: int
    reserved_usd: float
    reserved_tokens: int


@dataclass(frozen=True)
class Spending:
    """The calls and the cost of a campaign, over all attempts that were sent.

    `usd` counts open reservations in full, as the caps do, and is None if a price is unknown. `reserved_usd` is the
    part of it that is still open (batches), as far as its price is known.
    """

    calls: int
    usd: float | None
    reserved_usd: float


@dataclass(frozen=True)
class BilledRequests:
    """The requests of a task to one teacher for one purpose. `usd` is None if a price is unknown.

    Open reservations count in full, as the caps do.
    """

    teacher: str
    purpose: str
    requests: int
    tokens: int
    usd: float | None


@dataclass(frozen=True)
class Settlement:
    """How an attempt ended. The state `lost` counts the worst case as spent."""

    id: str
    state: Literal["settled", "lost", "released"]
    tokens: int = 0
    usd: float | None = None


def get_current_month() -> str:
    """The calendar month in UTC, as `2026-01`."""
    return datetime.now(UTC).strftime("%Y-%m")


def build_campaign_filter(account: Account) -> sa.ColumnElement[bool]:
    """The condition for the ledger rows of the account's campaign."""
    return sa.and_(LEDGER.c.campaign == account.campaign, LEDGER.c.task == account.task)


def build_month_filter(account: Account) -> sa.ColumnElement[bool]:
    """The condition for the ledger rows of the account's task in this month."""
    return sa.and_(LEDGER.c.task == account.task, LEDGER.c.month == get_current_month())


def sum_budget_usage(connection: sa.Connection, where: sa.ColumnElement[bool]) -> BudgetUsage:
    """Sum what the matching ledger rows count against a cap."""
    is_open = LEDGER.c.state == "reserved"
    reserved = [
        sa.func.coalesce(sa.func.sum(sa.case((is_open, column), else_=0)), 0)
        for column in (LEDGER.c.worst_usd, LEDGER.c.worst_tokens)
    ]
    settled = [
        sa.func.coalesce(sa.func.sum(sa.case((is_open, 0), else_=sa.func.coalesce(column, 0))), 0)
        for column in (LEDGER.c.usd, LEDGER.c.tokens)
    ]
    usd, tokens, reserved_usd, reserved_tokens = connection.execute(sa.select(*settled, *reserved).where(where)).one()
    return BudgetUsage(float(usd), int(tokens), float(reserved_usd), int(reserved_tokens))


def sum_spending(connection: sa.Connection, where: sa.ColumnElement[bool]) -> Spending:
    """Count the attempts of the matching ledger rows and sum their USD. Released attempts cost nothing."""
    reserved_usd = sa.case((LEDGER.c.state == "reserved", LEDGER.c.worst_usd))
    usd = _build_spent_column(LEDGER.c.usd, LEDGER.c.worst_usd, 0.0)
    columns = sa.func.count(), sa.func.count(usd), sa.func.sum(usd), sa.func.sum(reserved_usd)
    calls, priced, total, reserved = connection.execute(sa.select(*columns).where(where)).one()
    return Spending(int(calls), float(total or 0.0) if priced == calls else None, float(reserved or 0.0))


def list_billed_requests(connection: sa.Connection, where: sa.ColumnElement[bool]) -> list[BilledRequests]:
    """Sum the matching ledger rows by teacher and purpose. Released attempts cost nothing and are not counted."""
    usd = _build_spent_column(LEDGER.c.usd, LEDGER.c.worst_usd, 0.0)
    tokens = _build_spent_column(LEDGER.c.tokens, LEDGER.c.worst_tokens, 0)
    places = LEDGER.c.teacher, LEDGER.c.purpose
    sums = sa.func.count(), sa.func.count(usd), sa.func.sum(usd), sa.func.sum(tokens)
    query = sa.select(*places, *sums).where(where, LEDGER.c.state != "released").group_by(*places).order_by(*places)
    return [
        BilledRequests(teacher, purpose, int(n), int(tokens or 0), float(total or 0.0) if priced == n else None)
        for teacher, purpose, n, priced, total, tokens in connection.execute(query)
    ]


def _build_spent_column(settled: sa.Column[Any], worst: sa.Column[Any], nothing: float) -> sa.Case[Any]:
    """What an attempt took: nothing if it was released, and the worst case as long as it is open."""
    return sa.case((LEDGER.c.state == "released", nothing), (LEDGER.c.state == "reserved", worst), else_=settled)


def expire_leases(connection: sa.Connection) -> None:
    """Settle in full the reservations whose lease expired or whose process is dead. Batches have no lease."""
    is_open = sa.and_(LEDGER.c.state == "reserved", LEDGER.c.mode != "batch")
    owners = connection.scalars(sa.select(LEDGER.c.owner).where(is_open).distinct())
    dead = [owner for owner in owners if is_process_gone(owner)]
    expired = sa.and_(is_open, sa.or_(LEDGER.c.lease_until < time.time(), LEDGER.c.owner.in_(dead)))
    connection.execute(sa.update(LEDGER).where(expired).values(_build_lost_values()))


def reserve_attempts(
    connection: sa.Connection, reservations: Sequence[Reservation], completions: sa.Table
) -> list[Decision]:
    """Decide on each attempt and write the granted reservations. The caller's transaction holds the write lock.

    Args:
        completions: the table of stored answers.
    """
    blocked = _find_blocked(connection, {reservation.key for reservation in reservations}, completions)
    rooms: dict[tuple[str, str, BudgetSpec], _BudgetRoom] = {}
    turns: dict[str, _Turns] = {}
    decisions, rows = [], []
    now, month = datetime.now(UTC).isoformat(timespec="milliseconds"), get_current_month()
    for reservation in reservations:
        account, pace = reservation.account, reservation.pace
        decision = blocked.get(reservation.key, Decision("granted"))
        if decision.kind == "granted" and account.budget.has_caps:
            place = (account.task, account.campaign, account.budget)
            if place not in rooms:
                rooms[place] = _BudgetRoom(connection, account)
            decision = rooms[place].take(reservation.worst) or decision
        if decision.kind == "granted" and pace is not None:  # last, so that no send time is lost to a refusal
            if pace.provider not in turns:
                turns[pace.provider] = _Turns(connection, pace, reservation.teacher)
            decision = turns[pace.provider].take(pace, reservation.worst.tokens)
        decisions.append(decision)
        if decision.kind != "granted":
            continue
        ahead_s = max(0.0, decision.send_at - time.monotonic()) if decision.send_at is not None else 0.0
        rows.append(
            {
                "id": reservation.id,
                "request_key": reservation.key,
                "task": account.task,
                "campaign": account.campaign,
                "month": month,
                "teacher": reservation.teacher[:200],
                "purpose": account.purpose,
                "mode": reservation.mode,
                "state": "reserved",
                "worst_tokens": reservation.worst.tokens,
                "worst_usd": reservation.worst.usd,
                "owner": get_process_name(),
                "lease_until": time.time() + ahead_s + reservation.lease_s + LEASE_SLACK_S,
                "reserved_at": now,
            }
        )
    if rows:
        connection.execute(sa.insert(LEDGER), rows)
    for turn in turns.values():
        turn.write()
    return decisions


def settle_attempts(connection: sa.Connection, settlements: Sequence[Settlement]) -> None:
    """Write how attempts ended."""
    known = [{"i": s.id, "s": s.state, "t": s.tokens, "u": s.usd} for s in settlements if s.state != "lost"]
    if known:
        connection.execute(
            sa.update(LEDGER)
            .where(LEDGER.c.id == sa.bindparam("i"))
            .values(state=sa.bindparam("s"), tokens=sa.bindparam("t"), usd=sa.bindparam("u")),
            known,
        )
    if lost := [{"i": settlement.id} for settlement in settlements if settlement.state == "lost"]:
        connection.execute(
            sa.update(LEDGER).where(LEDGER.c.id == sa.bindparam("i")).values(_build_lost_values()),
            lost,
        )


def _build_lost_values() -> dict[str, Any]:
    return {"state": "lost", "tokens": LEDGER.c.worst_tokens, "usd": LEDGER.c.worst_usd}


def split_keys(keys: list[str]) -> Iterator[list[str]]:
    """Split keys into chunks that fit into one query."""
    for start in range(0, len(keys), _KEYS_PER_QUERY):
        yield keys[start : start + _KEYS_PER_QUERY]


def _find_blocked(connection: sa.Connection, keys: set[str], completions: sa.Table) -> dict[str, Decision]:
    """The keys that must not be sent: answered, in an open batch, or under way in another process."""
    blocked: dict[str, Decision] = {}
    for chunk in split_keys(sorted(keys)):
        is_open = sa.and_(LEDGER.c.request_key.in_(chunk), LEDGER.c.state == "reserved")
        for key, owner, mode in connection.execute(
            sa.select(LEDGER.c.request_key, LEDGER.c.owner, LEDGER.c.mode).where(is_open)
        ):
            if mode == "batch":  # also a batch of this process: its answer is still to come
                blocked[key] = Decision("batch")
            elif owner != get_process_name():
                blocked.setdefault(key, Decision("elsewhere"))
        answered = connection.scalars(sa.select(completions.c.request_key).where(completions.c.request_key.in_(chunk)))
        blocked |= dict.fromkeys(answered, Decision("stored"))
    return blocked


class _Turns:
    """Whose turn it is to ask a provider, within one transaction."""

    def __init__(self, connection: sa.Connection, pace: Pace, teacher: str) -> None:
        self._schedule: Schedule | None = read_schedule(connection, pace)
        self._under_way = 0
        if pace.concurrency is not None:
            is_open = sa.and_(LEDGER.c.state == "reserved", LEDGER.c.mode != "batch", LEDGER.c.teacher == teacher[:200])
            count = sa.select(sa.func.count()).select_from(LEDGER).where(is_open)
            self._under_way = connection.execute(count).scalar_one()

    def take(self, pace: Pace, tokens: int) -> Decision:
        """Take a turn for one request, or say why there is none."""
        if pace.concurrency is not None and self._under_way >= pace.concurrency:
            return Decision("busy")
        found = self._schedule.take(pace, tokens) if self._schedule is not None else None
        if isinstance(found, Wait):
            kind: Literal["later", "closed"] = "later" if found.reason is None else "closed"
            return Decision(kind, found.reason or "", wait_s=found.seconds)
        self._under_way += 1
        return Decision("granted", send_at=found)

    def write(self) -> None:
        """Write the send times that were taken."""
        if self._schedule is not None:
            self._schedule.write()


class _BudgetRoom:
    """What the caps of an account still allow, within one transaction."""

    def __init__(self, connection: sa.Connection, account: Account) -> None:
        budget, self._scopes = account.budget, list[tuple[str, BudgetUsage, float | None, int | None]]()
        if budget.usd is not None or budget.tokens is not None:
            campaign = sum_budget_usage(connection, build_campaign_filter(account))
            self._scopes.append(("", campaign, budget.usd, budget.tokens))
        if budget.month_usd is not None or budget.month_tokens is not None:
            month = sum_budget_usage(connection, build_month_filter(account))
            self._scopes.append(("month_", month, budget.month_usd, budget.month_tokens))
        self._usd, self._tokens = 0.0, 0

    def take(self, worst: WorstCase) -> Decision | None:
        """Take room for one request. Returns the refusal if there is no room."""
        for name, usage, cap_usd, cap_tokens in self._scopes:
            if cap_usd is not None:
                usd = worst.usd or 0.0
                if refusal := _check_cap(f"{name}usd", cap_usd, usage.usd, usage.reserved_usd + self._usd, usd):
                    return refusal
            if cap_tokens is not None:
                reserved = usage.reserved_tokens + self._tokens
                if refusal := _check_cap(f"{name}tokens", cap_tokens, usage.tokens, reserved, worst.tokens):
                    return refusal
        self._usd += worst.usd or 0.0
        self._tokens += worst.tokens
        return None


def _check_cap(name: str, cap: float, settled: float, reserved: float, wanted: float) -> Decision | None:
    if settled + wanted > cap + ROUNDING_ERROR:
        reason = f"budget.{name} is {cap:g}, of which {settled:g} is spent; the next request may take {wanted:g}"
        return Decision("over", reason)
    return Decision("full") if settled + reserved + wanted > cap + ROUNDING_ERROR else None
