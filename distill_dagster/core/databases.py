"""Using the two databases, Dagster's instance and the completion store, wherever `database_urls` says they are."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from distill_dagster.core.database_urls import EXAMPLE, POSTGRES, STORE, postgres_url, store_url, store_variable
from distill_dagster.core.errors import DistillError

LOCK = 0x646973746C  # any fixed number: processes of ours that open the same database meet at it
PATIENCE_S = 10


class DatabaseError(DistillError):
    """A database that cannot be used; its message names the variable and never holds the password."""


def insert_if_new(engine: sa.Engine, table: sa.Table) -> sa.Insert:
    """An insert that leaves a row alone whose key is there already."""
    if engine.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as into_postgres  # slow to load, and seldom wanted

        return into_postgres(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()


@contextmanager
def opening() -> Iterator[None]:
    """Around the opening of the Dagster instance: both databases answer, and one process at a time makes the tables.

    Raises:
        DatabaseError: a database cannot be used, or (from the block) refused what was wanted.
    """
    if (name := store_variable()) == STORE and store_url().startswith("postgres"):
        with _connected(STORE, store_url()):
            pass
    elif name == STORE:
        _parsed(STORE, store_url())
    if not (url := postgres_url()):
        yield
        return
    if importlib.util.find_spec("dagster_postgres") is None:
        raise _driver_missing(POSTGRES)
    if not url.startswith("postgresql"):
        raise _malformed(POSTGRES)
    # On a lock in the database, since the processes may be on different machines. It ends with the transaction.
    with _connected(POSTGRES, url) as connection, connection.begin():
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        try:
            yield
        except Exception as error:
            cause = error if isinstance(error, sa.exc.SQLAlchemyError) else error.__cause__
            if not isinstance(cause, sa.exc.SQLAlchemyError):
                raise
            raise _refused(POSTGRES, sa.make_url(url), cause) from None


@contextmanager
def _connected(variable: str, url: str) -> Iterator[sa.Connection]:
    parsed = _parsed(variable, url)
    try:
        engine = sa.create_engine(parsed, poolclass=sa.NullPool, connect_args={"connect_timeout": PATIENCE_S})
    except ModuleNotFoundError:
        raise _driver_missing(variable) from None
    try:
        connection = engine.connect()
    except sa.exc.SQLAlchemyError as error:
        raise _refused(variable, parsed, error) from None
    with connection:
        yield connection


def _parsed(variable: str, url: str) -> sa.URL:
    try:
        parsed = sa.make_url(url)
        parsed.get_dialect()
    except ModuleNotFoundError:
        raise _driver_missing(variable) from None
    except (sa.exc.SQLAlchemyError, ValueError):
        raise _malformed(variable) from None
    if parsed.host and "@" in parsed.host:  # the rest of a password, which would be shown as the host
        raise _malformed(variable)
    return parsed


def _malformed(variable: str) -> DatabaseError:
    return DatabaseError(
        f"{variable} is not the URL of a database. It is {EXAMPLE}, with special characters of the password written as "
        "%40 for @, %2F for / and so on. Correct the variable, or unset it."
    )


def _driver_missing(variable: str) -> DatabaseError:
    return DatabaseError(
        f"{variable} names a PostgreSQL database, and the packages for it are not installed. Run "
        "`make setup-postgres`, or unset the variable."
    )


def _refused(variable: str, url: sa.URL, error: sa.exc.SQLAlchemyError) -> DatabaseError:
    """What the server said, without the password, in one line: libpq's first names the cause."""
    said = str(getattr(error, "orig", None) or error).strip()
    said = " ".join(said.split("\nLINE ")[0].split())
    if url.password:
        said = said.replace(str(url.password), "***")
    where = url.set(query={}).render_as_string(hide_password=True)
    return DatabaseError(
        f"The database of {variable} cannot be used: {where}: {said.rstrip('.')}. Start the server, "
        "or correct the variable, or unset it."
    )
