"""Where the two databases are: Dagster's instance and the completion store, both SQLite files by default.

`DISTILL_POSTGRES_URL` moves both to PostgreSQL; `DISTILL_STORE_URL` places the completion store alone.
"""

from __future__ import annotations

import os

POSTGRES_VARIABLE, STORE_VARIABLE = "DISTILL_POSTGRES_URL", "DISTILL_STORE_URL"
POSTGRES_DRIVER = "postgresql+psycopg2"
EXAMPLE_URL = "postgresql://user:password@host:5432/database"


def add_driver(url: str) -> str:
    """The URL with the driver that is installed.

    Without one SQLAlchemy takes psycopg2 up to 2.0 and psycopg from 2.1 on; Dagster is made for psycopg2.
    """
    scheme, mark, rest = url.partition("://")
    return f"{POSTGRES_DRIVER}://{rest}" if mark and scheme in ("postgresql", "postgres") else url


def get_postgres_url() -> str:
    """The PostgreSQL database of everything; empty for SQLite files."""
    return add_driver(os.environ.get(POSTGRES_VARIABLE, "").strip())


def find_store_variable() -> str | None:
    """The variable that says where the completion store is; None for SQLite in the store's folder."""
    return next((name for name in (STORE_VARIABLE, POSTGRES_VARIABLE) if os.environ.get(name, "").strip()), None)


def get_store_url() -> str:
    """The database of the completion store; empty for SQLite in the store's folder."""
    name = find_store_variable()
    return add_driver(os.environ[name].strip()) if name else ""
