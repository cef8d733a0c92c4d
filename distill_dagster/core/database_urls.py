"""URLs of the two databases, Dagster's instance and the completion store. Both are SQLite files by default.

`DISTILL_POSTGRES_URL` moves both to PostgreSQL; `DISTILL_STORE_URL` moves the completion store only.
"""

from __future__ import annotations

import os

POSTGRES_VARIABLE, STORE_VARIABLE = "DISTILL_POSTGRES_URL", "DISTILL_STORE_URL"
POSTGRES_DRIVER = "postgresql+psycopg2"
EXAMPLE_URL = "postgresql://user:password@host:5432/database"


def add_driver(url: str) -> str:
    """Add the installed driver to a PostgreSQL URL that names none.

    By default SQLAlchemy takes psycopg2 up to 2.0 and psycopg from 2.1 on; Dagster is made for psycopg2.
    """
    scheme, mark, rest = url.partition("://")
    return f"{POSTGRES_DRIVER}://{rest}" if mark and scheme in ("postgresql", "postgres") else url


def get_postgres_url() -> str:
    """The URL of the PostgreSQL database, or an empty string for SQLite files."""
    return add_driver(os.environ.get(POSTGRES_VARIABLE, "").strip())


def find_store_variable() -> str | None:
    """The environment variable with the URL of the completion store; None for SQLite in the store's folder."""
    return next((name for name in (STORE_VARIABLE, POSTGRES_VARIABLE) if os.environ.get(name, "").strip()), None)


def get_store_url() -> str:
    """The URL of the completion store, or an empty string for SQLite in the store's folder."""
    name = find_store_variable()
    return add_driver(os.environ[name].strip()) if name else ""
