"""A PostgreSQL server of our own: in a temporary folder, on a free loopback port, gone when its block ends."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from distill_dagster.core.database_urls import add_driver
from tests.support.waiting import HANG_S, wait_until

REMEDY = (
    "On Debian and Ubuntu: apt-get install postgresql. Elsewhere: make test-services POSTGRES_BIN=/folder/of/initdb"
)


@dataclass(frozen=True)
class Server:
    """A running server; `password` is its superuser's, so that a test can look for it where it must not be."""

    port: int
    password: str

    def url(self, database: str, user: str = "distill", password: str | None = None) -> str:
        """As a user writes it: without naming a driver."""
        return f"postgresql://{user}:{password or self.password}@127.0.0.1:{self.port}/{database}"

    def rows(self, database: str, query: str) -> list[tuple[Any, ...]]:
        """What a statement returns; each is its own transaction, none at all for CREATE DATABASE."""
        engine = sa.create_engine(add_driver(self.url(database)), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        with engine.connect() as connection:
            result = connection.execute(sa.text(query))
            return [tuple(row) for row in result] if result.returns_rows else []

    def create_database(self) -> str:
        """The name of a new, empty database."""
        name = f"test_{secrets.token_hex(4)}"
        self.rows("postgres", f"CREATE DATABASE {name}")
        return name


def binaries() -> Path:
    """The folder of initdb and postgres: $POSTGRES_BIN, else that of the PATH, else Debian's newest."""
    if named := os.environ.get("POSTGRES_BIN"):
        return Path(named)
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    debian = list(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not debian:
        raise RuntimeError(f"no PostgreSQL server on this machine. {REMEDY}")
    return max(debian, key=lambda path: (len(path.parts[-3]), path.parts[-3])).parent


def unprivileged() -> dict[str, Any]:
    """Who runs the server: PostgreSQL refuses to be run by root."""
    if os.getuid() != 0:
        return {}
    names = {user.pw_name for user in pwd.getpwall()}
    user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@contextmanager
def run_postgres(**settings: Any) -> Iterator[Server]:
    """Run a server. `settings` are those of postgresql.conf. Its log is in no place that outlives the block.

    Raises:
        RuntimeError: its programs are not on this machine.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    bin_, who, password = binaries(), unprivileged(), secrets.token_hex(16)
    # Not pytest's folder: another user cannot enter that.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    try:
        secret = folder / "password"
        secret.write_text(password)
        if who:
            for path in (folder, secret):
                os.chown(path, who["user"], who["group"])
        surroundings: dict[str, Any] = {"cwd": folder, "env": {"PATH": os.environ["PATH"], "LC_ALL": "C"}, **who}
        initdb = [str(bin_ / "initdb"), "-D", str(folder / "data"), "-U", "distill", f"--pwfile={secret}"]
        initdb += ["-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]
        done = subprocess.run(initdb, capture_output=True, text=True, check=False, **surroundings)
        assert done.returncode == 0, done.stdout + done.stderr
        log = (folder / "log").open("w+")
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"} | settings
        command = [str(bin_ / "postgres"), "-D", str(folder / "data"), "-p", str(port)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        process = subprocess.Popen(command, stdout=log, stderr=log, **surroundings)
        try:
            ready = Server(port, password)
            _wait(ready, process, folder / "log")
            yield ready
        finally:
            process.send_signal(signal.SIGINT)  # what PostgreSQL calls a fast shutdown
            process.wait(timeout=HANG_S)
            log.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    def is_ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            server.rows("postgres", "SELECT 1")
        except sa.exc.OperationalError:
            return False
        return True

    wait_until(is_ready, f"the PostgreSQL server of {log}")
