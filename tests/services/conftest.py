"""A PostgreSQL server for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.postgres import Server, run_postgres


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with run_postgres() as server:
        yield server


@pytest.fixture
def database(server: Server) -> str:
    """The name of an empty database of the test's own."""
    return server.create_database()
