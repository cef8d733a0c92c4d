"""Connect to the databases of `database_urls`, with errors that say what to do and never show a password."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from distill_dagster.core.database_urls import (
    EXAMPLE_URL,
    POSTGRES_VARIABLE,
    STORE_VARIABLE,
    find_store_variable,
    get_postgres_url,
    get_store_url,
)
from distill_dagster.core.errors import DistillError

SETUP_LOCK_ID = 0x646973746C
"""An arbitrary number for PostgreSQL's advisory lock, the same in every process of the project."""
CONNECT_TIMEOUT_S = 10


class DatabaseError(DistillError):
    """A database cannot be used. The message names the environment variable and never contains the password."""


def insert_if_new(engine: sa.Engine, table: sa.Table) -> sa.Insert:
    """An insert that skips rows whose key exists."""
    if engine.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as into_postgres  # slow to load

        return into_postgres(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


@contextmanager
def prepare_databases() -> Iterator[None]:
    """Check that both databases answer. Open Dagster's instance in this block: one process at a time creates tables.

    Raises:
        DatabaseError: a database cannot be used, or a statement within the block failed.
    """
    if (name := find_store_variable()) == STORE_VARIABLE and get_store_url().startswith("postgres"):
        with _connect(STORE_VARIABLE, get_store_url()):
            pass
    elif name == STORE_VARIABLE:
        _parse_url(STORE_VARIABLE, get_store_url())
    if not (url := get_postgres_url()):
        yield
        return
    if importlib.util.find_spec("dagster_postgres") is None:
        raise _make_driver_error(POSTGRES_VARIABLE)
    if not url.startswith("postgresql"):
        raise _make_malformed_error(POSTGRES_VARIABLE)
    # The lock is in the database, since processes may run on different machines. It ends with the transaction.
    with _connect(POSTGRES_VARIABLE, url) as connection, connection.begin():
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(SETUP_LOCK_ID)))
        try:
            yield
        except Exception as error:
            cause = error if isinstance(error, sa.exc.SQLAlchemyError) else error.__cause__
            if not isinstance(cause, sa.exc.SQLAlchemyError):
                raise
            raise _make_refused_error(POSTGRES_VARIABLE, sa.make_url(url), cause) from None


@contextmanager
def _connect(variable: str, url: str) -> Iterator[sa.Connection]:
    parsed = _parse_url(variable, url)
    try:
        engine = sa.create_engine(parsed, poolclass=sa.NullPool, connect_args={"connect_timeout": CONNECT_TIMEOUT_S})
    except ModuleNotFoundError:
        raise _make_driver_error(variable) from None
    try:
        connection = engine.connect()
    except sa.exc.SQLAlchemyError as error:
        raise _make_refused_error(variable, parsed, error) from None
    with connection:
        yield connection


def _parse_url(variable: str, url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        parsed.get_dialect()
    except ModuleNotFoundError:
        raise _make_driver_error(variable) from None
    except (sa.exc.SQLAlchemyError, ValueError):
        raise _make_malformed_error(variable) from None
    if parsed.host and "@" in parsed.host:  # a part of a password that would be shown as the host
        raise _make_malformed_error(variable)
    return parsed


def _make_malformed_error(variable: str) -> DatabaseError:
    return DatabaseError(
        f"{variable} is not the URL of a database, such as {EXAMPLE_URL}. In a password, write %40 for @, %2F for / "
        "and so on. Correct the variable, or unset it."
    )


def _make_driver_error(variable: str) -> DatabaseError:
    return DatabaseError(
        f"{variable} names a PostgreSQL database, but its packages are not installed. Run `make setup-postgres`, or "
        "unset the variable."
    )


def _make_refused_error(variable: str, url: sa.URL, error: sa.exc.SQLAlchemyError) -> DatabaseError:
    """An error with the server's message in one line, without the password and the SQL text."""
    message = str(getattr(error, "orig", None) or error).strip()
    message = " ".join(message.split("\nLINE ")[0].split())
    if url.password:
        message = message.replace(str(url.password), "***")
    address = url.set(query={}).render_as_string(hide_password=True)
    return DatabaseError(
        f"The database of {variable} cannot be used: {address}: {message.rstrip('.')}. Start the server, "
        "correct the variable, or unset it."
    )
