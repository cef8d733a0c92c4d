"""The completion store: every received answer, by request_key, durable before it is used.

The only mutable database of the project: SQLAlchemy over SQLite (WAL) by default, PostgreSQL by URL.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from pydantic_core import from_json

from distill_dagster.core.database_urls import add_driver
from distill_dagster.core.databases import insert_if_new
from distill_dagster.teacher.completions.ledger import (
    EXPIRY_INTERVAL_S,
    LEDGER,
    Account,
    BudgetUsage,
    Decision,
    Reservation,
    Settlement,
    Spending,
    build_campaign_filter,
    build_month_filter,
    expire_leases,
    reserve_attempts,
    settle_attempts,
    sum_budget_usage,
    sum_spending,
)
from distill_dagster.teacher.providers.exchange import Response

if TYPE_CHECKING:
    import polars as pl

STORE_FILE = "completions.db"
LEDGER_LOCK = 0x6C6564676572
"""PostgreSQL's lock around decisions on what may be sent; any fixed number."""
KEYS_PER_LOOKUP = 2000
"""Keys in one query."""
_METADATA = sa.MetaData()
_COMPLETIONS = sa.Table(
    "completions",
    _METADATA,
    sa.Column("request_key", sa.String(64), primary_key=True),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("received_at", sa.String(32), nullable=False),
)
_SMOKES = sa.Table(
    "smokes",
    _METADATA,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("passed_at", sa.String(32), nullable=False),
)


class CompletionStore:
    """Answers by request_key. Safe for several processes; a first answer is never overwritten."""

    def __init__(self, url: str) -> None:
        arguments = {"timeout": 60} if url.startswith("sqlite") else {}
        self._engine = sa.create_engine(url, connect_args=arguments)
        self._sqlite = self._engine.dialect.name == "sqlite"
        # What is only reserved need not survive a power failure: no wait for the disk.
        self._quick = sa.create_engine(url, connect_args=arguments) if self._sqlite else self._engine
        self._expired_at = 0.0
        if self._sqlite:
            sa.event.listen(self._engine, "connect", _set_sqlite_pragmas)
            sa.event.listen(self._quick, "connect", _set_quick_pragmas)
        self.make_tables(_COMPLETIONS, _SMOKES, LEDGER)

    def make_tables(self, *tables: sa.Table) -> None:
        """Make tables of this database, with their indexes, as far as they are not there."""
        with self._engine.begin() as connection:
            # In the database, not by asking first whether the table is there: two processes may start at once. IF NOT
            # EXISTS does not cover that on PostgreSQL.
            if not self._sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LEDGER_LOCK)))
            for table in tables:
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
                for index in sorted(table.indexes, key=lambda index: str(index.name)):
                    connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))

    @classmethod
    def in_folder(cls, folder: Path) -> CompletionStore:
        folder.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{folder / STORE_FILE}")

    @property
    def database(self) -> sa.Engine:
        """The database itself, for what belongs beside the answers: which of them are asked for in batches."""
        return self._engine

    def take_over(self, folder: Path) -> None:
        """While this store is empty: copy what the SQLite store in `folder` has, so that nothing is paid for twice.

        Beside the answers: the ledger, so that a month's budget goes on; what passed a smoke; and the notes on batches
        under way, whose answers are collected from here on. Reservations that stand in the ledger come along as they
        are: end what still works on the old store before.
        """
        from distill_dagster.teacher.completions.batch_store import BATCH_TABLES

        if not (folder / STORE_FILE).exists():
            return
        with self._engine.connect() as connection:
            if not _is_empty(connection):
                return
        self.make_tables(*BATCH_TABLES)
        old = CompletionStore.in_folder(folder)
        try:
            old.make_tables(*BATCH_TABLES)
            with old._engine.connect() as reading, self._engine.begin() as writing:
                self._lock(writing)
                if not _is_empty(writing):
                    return  # another process was first
                for table in (_COMPLETIONS, _SMOKES, LEDGER, *BATCH_TABLES):
                    for chunk in reading.execute(sa.select(table)).mappings().partitions(500):
                        writing.execute(sa.insert(table), [dict(row) for row in chunk])
        finally:
            old.close()

    def _lock(self, connection: sa.Connection) -> None:
        """One writer at a time, from here to the end of the transaction: no two wait for each other crosswise."""
        if self._sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LEDGER_LOCK)))

    def get(self, keys: Iterable[str]) -> dict[str, Response]:
        """The stored answers among `keys`."""
        rows = self._rows(keys, _COMPLETIONS.c.request_key, _COMPLETIONS.c.response)
        return {key: _parse_stored(response) for key, response in rows}

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that have an answer."""
        return {key for (key,) in self._rows(keys, _COMPLETIONS.c.request_key)}

    def _rows(self, keys: Iterable[str], *columns: sa.Column[Any]) -> Iterator[Any]:
        wanted = sorted(set(keys))
        # One value that holds many keys: a parameter for each would cost more than the look-up.
        unpack = sa.func.json_each if self._sqlite else sa.func.json_array_elements_text
        with self._engine.connect() as connection:
            for start in range(0, len(wanted), KEYS_PER_LOOKUP):
                listed = unpack(sa.literal(wanted[start : start + KEYS_PER_LOOKUP], sa.JSON)).table_valued("value")
                among = _COMPLETIONS.c.request_key.in_(sa.select(listed.c.value))
                yield from connection.execute(sa.select(*columns).where(among)).all()

    def put(self, key: str, response: Response) -> None:
        """Store one answer; on return it survives a crash of this process."""
        self.commit({key: response})

    def commit(
        self, answers: Mapping[str, Response], ended: Sequence[Settlement] = (), wanted: Sequence[Reservation] = ()
    ) -> list[Decision]:
        """Store answers, settle attempts and decide on new ones, all in one transaction.

        On return the answers survive a crash of the machine. Where another process was first with the same request,
        its answer stands. The verdicts are in the order of `wanted`.
        """
        rows = [
            {
                "request_key": key,
                "response": json.dumps(asdict(response), ensure_ascii=False),
                "received_at": response.received_at,
            }
            for key, response in answers.items()
        ]
        with (self._engine if rows else self._quick).begin() as connection:
            self._lock(connection)  # decisions on what may be sent see each other
            if rows:
                connection.execute(insert_if_new(self._engine, _COMPLETIONS), rows)
            settle_attempts(connection, ended)
            if wanted and time.monotonic() - self._expired_at > EXPIRY_INTERVAL_S:
                expire_leases(connection)
                self._expired_at = time.monotonic()
            return reserve_attempts(connection, wanted, _COMPLETIONS) if wanted else []

    def spent(self, account: Account, *, month: bool = False) -> BudgetUsage:
        """What a campaign of a task, or the task in this calendar month, took so far."""
        with self._engine.connect() as connection:
            return sum_budget_usage(
                connection, build_month_filter(account) if month else build_campaign_filter(account)
            )

    def taken(self, task: str, campaign: str) -> Spending:
        """What all runs of a campaign sent, and what it cost."""
        with self._engine.connect() as connection:
            return sum_spending(connection, build_campaign_filter(Account(task, campaign, "")))

    def ledger(self) -> pl.DataFrame:
        """All of the ledger, the newest attempt last."""
        import polars as pl

        types = {sa.String: pl.String, sa.Integer: pl.Int64, sa.Float: pl.Float64}
        with self._engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(sa.select(LEDGER)).mappings()]
        columns = {c.name: types[type(c.type)] for c in LEDGER.columns}
        return pl.DataFrame(rows, schema=columns).sort("reserved_at", "id")

    def smoked(self, key: str) -> bool:
        """Whether a smoke of this teacher and template passed before."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(_SMOKES.c.key).where(_SMOKES.c.key == key)).first() is not None

    def smoke_passed(self, key: str) -> None:
        values = {"key": key, "passed_at": datetime.now(UTC).isoformat(timespec="seconds")}
        with self._engine.begin() as connection:
            connection.execute(insert_if_new(self._engine, _SMOKES), values)

    def count(self) -> int:
        with self._engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(_COMPLETIONS)).scalar_one()

    def close(self) -> None:
        self._engine.dispose()
        self._quick.dispose()


@contextmanager
def open_store(folder: Path, url: str = "") -> Iterator[CompletionStore]:
    """The completion store for as long as it is needed.

    Args:
        folder: where the SQLite store lies.
        url: a SQLAlchemy URL of another database; it starts with what is in `folder`. Empty for SQLite in `folder`.
    """
    store = CompletionStore(add_driver(url)) if url else CompletionStore.in_folder(folder)
    try:
        if url:
            store.take_over(folder)
        yield store
    finally:
        store.close()


def _is_empty(connection: sa.Connection) -> bool:
    """Whether nothing was asked from this database yet."""
    return all(connection.execute(sa.select(table).limit(1)).first() is None for table in (_COMPLETIONS, LEDGER))


def _set_sqlite_pragmas(connection: Any, _: Any) -> None:
    for left in range(100, -1, -1):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:  # another process is making this file: SQLite's timeout does not count here
            if not left:
                raise
            time.sleep(0.05)
    connection.execute("PRAGMA synchronous=FULL")


def _set_quick_pragmas(connection: Any, record: Any) -> None:
    _set_sqlite_pragmas(connection, record)
    connection.execute("PRAGMA synchronous=NORMAL")


def _parse_stored(text: str) -> Response:
    value = from_json(text)
    if value["positions"]:
        value["positions"] = [[(token, logprob) for token, logprob in position] for position in value["positions"]]
    return Response(**value)
