"""The completion store: every received answer by its request_key, durable before it is used.

It is the only mutable database of the project: SQLite in WAL mode by default, PostgreSQL by URL.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import sqlalchemy as sa
from pydantic_core import from_json

from distill_dagster.config.replay import REPLAY_PREFIX
from distill_dagster.config.teacher import EMBEDDED_PREFIX
from distill_dagster.core.database_urls import add_driver
from distill_dagster.core.databases import insert_if_new
from distill_dagster.teacher.completions.ledger import (
    EXPIRY_INTERVAL_S,
    LEDGER,
    SERVING,
    Account,
    BilledRequests,
    BudgetUsage,
    Decision,
    Reservation,
    Settlement,
    Spending,
    build_campaign_filter,
    build_month_filter,
    expire_leases,
    list_billed_requests,
    reserve_attempts,
    settle_attempts,
    sum_budget_usage,
    sum_spending,
)
from distill_dagster.teacher.completions.pacing import PACING
from distill_dagster.teacher.providers.attempts import UnusableAnswerError
from distill_dagster.teacher.providers.exchange import Response
from distill_dagster.teacher.providers.finish_reasons import normalize_finish_reason

if TYPE_CHECKING:
    import polars as pl

STORE_FILE = "completions.db"
LEDGER_LOCK = 0x6C6564676572
"""The advisory lock that PostgreSQL takes around decisions on what may be sent. Any fixed number will do."""
MAX_CONNECTIONS, POOL_WAIT_S = 4, 60.0
"""Connections of one store to a PostgreSQL server. Who needs one more waits for it."""
KEYS_PER_LOOKUP = 2000
"""Keys per query."""
_METADATA = sa.MetaData()
_COMPLETIONS = sa.Table(
    "completions",
    _METADATA,
    sa.Column("request_key", sa.String(64), primary_key=True),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("received_at", sa.String(32), nullable=False),
)
_UNUSABLE = sa.Table(
    # The newest answer to a request that could not be used, for people and for the row that failed. It is no answer.
    "unusable_answers",
    _METADATA,
    sa.Column("request_key", sa.String(64), primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
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
    """Answers by request_key. Safe for several processes. The first answer to a request is never overwritten."""

    def __init__(self, url: str) -> None:
        self._sqlite = url.startswith("sqlite")
        # A server has few connections for many processes, and closes those that are idle for long.
        server = {"pool_size": MAX_CONNECTIONS, "max_overflow": 0, "pool_timeout": POOL_WAIT_S, "pool_pre_ping": True}
        options: dict[str, Any] = {"connect_args": {"timeout": 60}} if self._sqlite else server
        self._engine = sa.create_engine(url, **options)
        # Reservations need not survive a power failure, so they do not wait for the disk.
        self._quick = sa.create_engine(url, **options) if self._sqlite else self._engine
        self._expired_at, self._has_pacing = 0.0, False
        if self._sqlite:
            sa.event.listen(self._engine, "connect", _set_sqlite_pragmas)
            sa.event.listen(self._quick, "connect", _set_quick_pragmas)
        self.create_tables(_COMPLETIONS, _SMOKES, LEDGER)

    def create_tables(self, *tables: sa.Table) -> None:
        """Create the tables and indexes that do not exist yet."""
        with self._engine.begin() as connection:
            # IF NOT EXISTS, because two processes may start at once. On PostgreSQL that needs a lock, too.
            if not self._sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LEDGER_LOCK)))
            for table in tables:
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
                for index in sorted(table.indexes, key=lambda index: str(index.name)):
                    connection.execute(sa.schema.CreateIndex(index, if_not_exists=True))

    @classmethod
    def open_in_folder(cls, folder: Path) -> CompletionStore:
        """Open the SQLite store in a folder; create both if they do not exist."""
        folder.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{folder / STORE_FILE}")

    @property
    def database(self) -> sa.Engine:
        """The database, for tables next to the answers, such as the requests in open batches."""
        return self._engine

    def take_over(self, folder: Path) -> None:
        """Copy the SQLite store in `folder` into this store if this one is empty, so that nothing is paid for twice.

        It copies the answers, the ledger, the passed smoke tests and the notes on open batches. From then on, this
        store collects the answers of these batches. Open reservations are copied unchanged, so stop all runs on the
        old store first.
        """
        from distill_dagster.teacher.completions.batch_store import BATCH_TABLES

        if not (folder / STORE_FILE).exists():
            return
        with self._engine.connect() as connection:
            if not _is_empty(connection):
                return
        self.create_tables(_UNUSABLE, *BATCH_TABLES)
        old = CompletionStore.open_in_folder(folder)
        try:
            old.create_tables(_UNUSABLE, *BATCH_TABLES)
            with old._engine.connect() as reading, self._engine.begin() as writing:
                self._lock(writing)
                if not _is_empty(writing):
                    return  # another process was first
                for table in (_COMPLETIONS, _UNUSABLE, _SMOKES, LEDGER, *BATCH_TABLES):
                    for chunk in reading.execute(sa.select(table)).mappings().partitions(500):
                        writing.execute(sa.insert(table), [dict(row) for row in chunk])
        finally:
            old.close()

    def _lock(self, connection: sa.Connection) -> None:
        """Allow one writer until the end of the transaction, so that no two transactions deadlock."""
        if self._sqlite:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LEDGER_LOCK)))

    def get(self, keys: Iterable[str]) -> dict[str, Response]:
        """The stored answers among `keys`."""
        rows = self._select(keys, _COMPLETIONS.c.request_key, _COMPLETIONS.c.response)
        return {key: _parse_stored(response) for key, response in rows}

    def find_stored_keys(self, keys: Iterable[str]) -> set[str]:
        """The keys among `keys` that have an answer."""
        return {key for (key,) in self._select(keys, _COMPLETIONS.c.request_key)}

    def find_unusable(self, keys: Iterable[str]) -> dict[str, UnusableAnswerError]:
        """The newest unusable answers among `keys`, as the errors that they are."""
        if not sa.inspect(self._engine).has_table(_UNUSABLE.name):  # none was stored yet
            return {}
        columns = _UNUSABLE.c.request_key, _UNUSABLE.c.reason, _UNUSABLE.c.response
        return {
            key: UnusableAnswerError(reason, _parse_stored(response))
            for key, reason, response in self._select(keys, *columns)
        }

    def _select(self, keys: Iterable[str], key_column: sa.Column[Any], *columns: sa.Column[Any]) -> Iterator[Any]:
        """Read `columns` next to `key_column`, which is compared with `keys`."""
        wanted = sorted(set(keys))
        # One JSON parameter with many keys: a parameter per key would cost more than the lookup.
        unpack = sa.func.json_each if self._sqlite else sa.func.json_array_elements_text
        with self._engine.connect() as connection:
            for start in range(0, len(wanted), KEYS_PER_LOOKUP):
                listed = unpack(sa.literal(wanted[start : start + KEYS_PER_LOOKUP], sa.JSON)).table_valued("value")
                among = key_column.in_(sa.select(listed.c.value))
                yield from connection.execute(sa.select(key_column, *columns).where(among)).all()

    def put(self, key: str, response: Response) -> None:
        """Store one answer. It is durable on return."""
        self.commit({key: response})

    def commit(
        self,
        answers: Mapping[str, Response],
        settlements: Sequence[Settlement] = (),
        reservations: Sequence[Reservation] = (),
        unusable: Mapping[str, UnusableAnswerError] | None = None,
    ) -> list[Decision]:
        """Store answers, settle attempts and decide on new ones in one transaction.

        On return the answers survive a crash of the machine. If the store already has an answer to a request, that
        answer is kept. `unusable` has what came instead of answers, by request_key.

        Returns:
            The decisions, in the order of `reservations`.
        """
        if not self._has_pacing and any(reservation.pace is not None for reservation in reservations):
            self.create_tables(PACING)
            self._has_pacing = True
        rows = [_build_row(key, response) for key, response in answers.items()]
        bad_rows = [_build_row(key, e.answer) | {"reason": str(e)} for key, e in (unusable or {}).items()]
        with (self._engine if rows or bad_rows else self._quick).begin() as connection:
            self._lock(connection)  # so that decisions see each other
            if rows:
                connection.execute(insert_if_new(self._engine, _COMPLETIONS), rows)
            if bad_rows:
                connection.execute(sa.schema.CreateTable(_UNUSABLE, if_not_exists=True))
            for row in bad_rows:
                connection.execute(sa.delete(_UNUSABLE).where(_UNUSABLE.c.request_key == row["request_key"]))
                connection.execute(sa.insert(_UNUSABLE).values(**row))
            settle_attempts(connection, settlements)
            if reservations and time.monotonic() - self._expired_at > EXPIRY_INTERVAL_S:
                expire_leases(connection)
                self._expired_at = time.monotonic()
            return reserve_attempts(connection, reservations, _COMPLETIONS) if reservations else []

    def sum_budget_usage(self, account: Account, *, month: bool = False) -> BudgetUsage:
        """What counts against the caps of a campaign, or of the task in this calendar month."""
        where = build_month_filter(account) if month else build_campaign_filter(account)
        with self._engine.connect() as connection:
            return sum_budget_usage(connection, where)

    def sum_spending(self, task: str, campaign: str) -> Spending:
        """The calls and the cost of all runs of a campaign."""
        with self._engine.connect() as connection:
            return sum_spending(connection, build_campaign_filter(Account(task, campaign, "")))

    def list_billed_requests(self, task: str) -> list[BilledRequests]:
        """The requests of a task to teachers that bill them, by teacher and purpose, but those of serving."""
        free = [LEDGER.c.teacher.startswith(prefix, autoescape=True) for prefix in (EMBEDDED_PREFIX, REPLAY_PREFIX)]
        with self._engine.connect() as connection:
            where = sa.and_(LEDGER.c.task == task, LEDGER.c.purpose != SERVING, *(~is_free for is_free in free))
            return list_billed_requests(connection, where)

    def read_ledger(self) -> pl.DataFrame:
        """The whole ledger, the newest attempt last."""
        import polars as pl

        types = {sa.String: pl.String, sa.Integer: pl.Int64, sa.Float: pl.Float64}
        with self._engine.connect() as connection:
            rows = [dict(row) for row in connection.execute(sa.select(LEDGER)).mappings()]
        columns = {c.name: types[type(c.type)] for c in LEDGER.columns}
        return pl.DataFrame(rows, schema=columns).sort("reserved_at", "id")

    def has_passed_smoke(self, key: str) -> bool:
        """Whether the smoke test of a teacher and template has passed. `key` is their hash."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(_SMOKES.c.key).where(_SMOKES.c.key == key)).first() is not None

    def note_passed_smoke(self, key: str) -> None:
        """Note that the smoke test of a teacher and template has passed."""
        values = {"key": key, "passed_at": datetime.now(UTC).isoformat(timespec="seconds")}
        with self._engine.begin() as connection:
            connection.execute(insert_if_new(self._engine, _SMOKES), values)

    def count(self) -> int:
        """The number of stored answers."""
        with self._engine.connect() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(_COMPLETIONS)).scalar_one()

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()
        self._quick.dispose()


@contextmanager
def open_store(folder: Path, url: str = "") -> Iterator[CompletionStore]:
    """Open the completion store for the duration of a block.

    Args:
        folder: the folder of the SQLite store.
        url: the SQLAlchemy URL of another database, which takes over the content of `folder`. Empty for SQLite.
    """
    store = CompletionStore(add_driver(url)) if url else CompletionStore.open_in_folder(folder)
    try:
        if url:
            store.take_over(folder)
        yield store
    finally:
        store.close()


@contextmanager
def open_store_for_reading(folder: Path, url: str = "") -> Iterator[CompletionStore]:
    """Open the completion store and write nothing: for commands that only look. It is empty if there is none yet.

    Args:
        folder: the folder of the SQLite store. This user may be unable to write it.
        url: as of `open_store`.
    """
    file = folder / STORE_FILE
    if url or (os.access(folder, os.W_OK) and file.exists()):
        with open_store(folder, url) as store:
            yield store
        return
    if file.exists():
        # SQLite could not create the files that it needs next to a database in WAL mode.
        immutable = "" if file.with_name(f"{STORE_FILE}-wal").exists() else "&immutable=1"
        store = CompletionStore(f"sqlite:///file:{quote(str(file))}?mode=ro{immutable}&uri=true")
    else:
        store = CompletionStore("sqlite://")
    try:
        yield store
    finally:
        store.close()


def _is_empty(connection: sa.Connection) -> bool:
    """Whether this database has neither answers nor ledger rows."""
    return all(connection.execute(sa.select(table).limit(1)).first() is None for table in (_COMPLETIONS, LEDGER))


def _set_sqlite_pragmas(connection: Any, _: Any) -> None:
    for retries_left in range(100, -1, -1):
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError:  # another process creates this file; SQLite's timeout does not apply here
            if not retries_left:
                raise
            time.sleep(0.05)
    connection.execute("PRAGMA synchronous=FULL")


def _set_quick_pragmas(connection: Any, record: Any) -> None:
    _set_sqlite_pragmas(connection, record)
    connection.execute("PRAGMA synchronous=NORMAL")


def _build_row(key: str, response: Response) -> dict[str, str]:
    text = json.dumps(asdict(response), ensure_ascii=False)
    return {"request_key": key, "response": text, "received_at": response.received_at}


def _parse_stored(text: str) -> Response:
    value = from_json(text)
    if value["finish_reason"] not in (None, "stop", "length", "tool_calls"):  # earlier versions stored the provider's
        value["finish_reason"] = normalize_finish_reason(value["finish_reason"])
    if value["positions"]:
        value["positions"] = [[(token, logprob) for token, logprob in position] for position in value["positions"]]
    return Response(**value)
