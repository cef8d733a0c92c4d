"""The ledger: what every attempt at a request may cost at most, and what it cost in the end.

In the completion store's database, so that all runs and processes share it. The worst case is reserved before a request
is sent and settled when it ended. Reservations carry a lease: those of a process that died are settled in full, since
the teacher may have been paid: at once where the process ran on this host, else when the lease ran out.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import sqlalchemy as sa

from distill_dagster.config import BudgetSpec
from distill_dagster.core.processes import get_process_name, is_process_gone
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
LEASE_SLACK_S = 60.0
EXPIRY_INTERVAL_S = 10.0


@dataclass(frozen=True)
class Account:
    """Who pays for a request: the task, the campaign that it belongs to, what it is asked for, and the caps."""

    task: str
    campaign: str
    purpose: str
    budget: BudgetSpec = NO_CAP


@dataclass(frozen=True)
class Reservation:
    """One attempt that wants to be sent."""

    key: str
    account: Account
    teacher: str
    worst: WorstCase
    lease_s: float
    mode: str = "online"
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Decision:
    """`granted`; `stored`, the answer came meanwhile; `elsewhere`, another process asks the same just now; `full`, what
    is reserved leaves no room, and may when it is settled; `over`, the cap is reached."""

    kind: Literal["granted", "stored", "elsewhere", "full", "over"]
    why: str = ""


@dataclass(frozen=True)
class BudgetUsage:
    """What was settled, and what is reserved beyond it. USD are those of requests with a known price."""

    usd: float
    tokens: int
    reserved_usd: float
    reserved_tokens: int


@dataclass(frozen=True)
class Spending:
    """What a campaign took: every attempt that was sent, whatever became of the partition that sent it.

    `usd` counts what is under way in full, as the caps do, and is None where a price is unknown; `reserved_usd` is the
    part of it that is under way (batches), or what is known of it.
    """

    calls: int
    usd: float | None
    reserved_usd: float


@dataclass(frozen=True)
class Settlement:
    """How an attempt ended. In full: its worst case is taken as spent."""

    id: str
    state: Literal["settled", "lost", "released"]
    tokens: int = 0
    usd: float | None = None


def get_current_month() -> str:
    return datetime.now(UTC).strftime("%Y-%m")


def sum_budget_usage(connection: sa.Connection, where: sa.ColumnElement[bool]) -> BudgetUsage:
    """What the ledger's rows that match took."""
    open_ = LEDGER.c.state == "reserved"
    columns = [
        sa.func.coalesce(sa.func.sum(sa.case((open_, wanted), else_=0)), 0)
        for wanted in (LEDGER.c.worst_usd, LEDGER.c.worst_tokens)
    ]
    done = [
        sa.func.coalesce(sa.func.sum(sa.case((open_, 0), else_=sa.func.coalesce(taken, 0))), 0)
        for taken in (LEDGER.c.usd, LEDGER.c.tokens)
    ]
    usd, tokens, reserved_usd, reserved_tokens = connection.execute(sa.select(*done, *columns).where(where)).one()
    return BudgetUsage(float(usd), int(tokens), float(reserved_usd), int(reserved_tokens))


def sum_spending(connection: sa.Connection, where: sa.ColumnElement[bool]) -> Spending:
    """Attempts and USD of the ledger's rows that match. What was released cost nothing, known price or not."""
    open_ = sa.case((LEDGER.c.state == "reserved", LEDGER.c.worst_usd))
    usd = sa.case(
        (LEDGER.c.state == "released", 0.0), (LEDGER.c.state == "reserved", LEDGER.c.worst_usd), else_=LEDGER.c.usd
    )
    columns = sa.func.count(), sa.func.count(usd), sa.func.sum(usd), sa.func.sum(open_)
    calls, known, whole, reserved = connection.execute(sa.select(*columns).where(where)).one()
    return Spending(int(calls), float(whole or 0.0) if known == calls else None, float(reserved or 0.0))


def build_campaign_filter(account: Account) -> sa.ColumnElement[bool]:
    return sa.and_(LEDGER.c.campaign == account.campaign, LEDGER.c.task == account.task)


def build_month_filter(account: Account) -> sa.ColumnElement[bool]:
    return sa.and_(LEDGER.c.task == account.task, LEDGER.c.month == get_current_month())


def expire_leases(connection: sa.Connection) -> None:
    """Settle reservations whose lease ran out, or whose process is known to be dead: in full."""
    open_ = sa.and_(LEDGER.c.state == "reserved", LEDGER.c.mode != "batch")
    owners = connection.scalars(sa.select(LEDGER.c.owner).where(open_).distinct())
    dead = [owner for owner in owners if is_process_gone(owner)]
    late = sa.and_(open_, sa.or_(LEDGER.c.lease_until < time.time(), LEDGER.c.owner.in_(dead)))
    connection.execute(sa.update(LEDGER).where(late).values(_build_lost_values()))


def _build_lost_values() -> dict[str, Any]:
    return {"state": "lost", "tokens": LEDGER.c.worst_tokens, "usd": LEDGER.c.worst_usd}


def reserve_attempts(connection: sa.Connection, wanted: Sequence[Reservation], stored: sa.Table) -> list[Decision]:
    """Decide on each, and write down those that are granted. The caller's transaction holds the write lock."""
    keys = sorted({one.key for one in wanted})
    known, elsewhere = set[str](), set[str]()
    for start in range(0, len(keys), 500):
        chunk = keys[start : start + 500]
        known |= set(connection.scalars(sa.select(stored.c.request_key).where(stored.c.request_key.in_(chunk))))
        asked = sa.select(LEDGER.c.request_key).where(
            LEDGER.c.request_key.in_(chunk), LEDGER.c.state == "reserved", LEDGER.c.owner != get_process_name()
        )
        elsewhere |= set(connection.scalars(asked))
    rooms: dict[tuple[str, str, BudgetSpec], _BudgetRoom] = {}
    verdicts, rows = [], []
    now, month = datetime.now(UTC).isoformat(timespec="milliseconds"), get_current_month()
    for one in wanted:
        if one.key in known:
            verdicts.append(Decision("stored"))
            continue
        if one.key in elsewhere:
            verdicts.append(Decision("elsewhere"))
            continue
        account = one.account
        if account.budget.any:
            place = (account.task, account.campaign, account.budget)
            if place not in rooms:
                rooms[place] = _BudgetRoom(connection, account)
            if (verdict := rooms[place].take(one.worst)) is not None:
                verdicts.append(verdict)
                continue
        verdicts.append(Decision("granted"))
        rows.append(
            {
                "id": one.id,
                "request_key": one.key,
                "task": account.task,
                "campaign": account.campaign,
                "month": month,
                "teacher": one.teacher[:200],
                "purpose": account.purpose,
                "mode": one.mode,
                "state": "reserved",
                "worst_tokens": one.worst.tokens,
                "worst_usd": one.worst.usd,
                "owner": get_process_name(),
                "lease_until": time.time() + one.lease_s + LEASE_SLACK_S,
                "reserved_at": now,
            }
        )
    if rows:
        connection.execute(sa.insert(LEDGER), rows)
    return verdicts


class _BudgetRoom:
    """What the caps of an account still leave, within one transaction."""

    def __init__(self, connection: sa.Connection, account: Account) -> None:
        budget, self._scopes = account.budget, list[tuple[str, BudgetUsage, float | None, int | None]]()
        if budget.usd is not None or budget.tokens is not None:
            self._scopes.append(
                ("", sum_budget_usage(connection, build_campaign_filter(account)), budget.usd, budget.tokens)
            )
        if budget.month_usd is not None or budget.month_tokens is not None:
            month = sum_budget_usage(connection, build_month_filter(account))
            self._scopes.append(("month_", month, budget.month_usd, budget.month_tokens))
        self._usd, self._tokens = 0.0, 0

    def take(self, worst: WorstCase) -> Decision | None:
        """None where there is room, which is then taken."""
        for name, now, cap_usd, cap_tokens in self._scopes:
            if cap_usd is not None:
                usd = worst.usd or 0.0
                if verdict := _check_cap(f"{name}usd", cap_usd, now.usd, now.reserved_usd + self._usd, usd):
                    return verdict
            if cap_tokens is not None:
                reserved = now.reserved_tokens + self._tokens
                if verdict := _check_cap(f"{name}tokens", cap_tokens, now.tokens, reserved, worst.tokens):
                    return verdict
        self._usd += worst.usd or 0.0
        self._tokens += worst.tokens
        return None


def _check_cap(name: str, cap: float, settled: float, reserved: float, wanted: float) -> Decision | None:
    tiny = 1e-9  # sums of floats
    if settled + wanted > cap + tiny:
        why = f"budget.{name} is {cap:g}, of which {settled:g} is spent; the next request may take {wanted:g}"
        return Decision("over", why)
    return Decision("full") if settled + reserved + wanted > cap + tiny else None


def settle_attempts(connection: sa.Connection, ended: Sequence[Settlement]) -> None:
    """Write down how attempts ended."""
    rows = [{"i": one.id, "s": one.state, "t": one.tokens, "u": one.usd} for one in ended if one.state != "lost"]
    if rows:
        connection.execute(
            sa.update(LEDGER)
            .where(LEDGER.c.id == sa.bindparam("i"))
            .values(state=sa.bindparam("s"), tokens=sa.bindparam("t"), usd=sa.bindparam("u")),
            rows,
        )
    if lost := [{"i": one.id} for one in ended if one.state == "lost"]:
        connection.execute(
            sa.update(LEDGER).where(LEDGER.c.id == sa.bindparam("i")).values(_build_lost_values()),
            lost,
        )
