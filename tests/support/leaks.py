"""Looking for a planted secret in everything that a home holds: bytes, databases, tables, whatever is compressed."""

from __future__ import annotations

import gzip
import sqlite3
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def find_leaks(folder: Path, *secrets: str) -> list[str]:
    """Where below `folder` one of the secrets stands: file, and for databases table and column.

    Bytes are searched as they are and, where they are gzip, zlib or a zip, unpacked; SQLite files are read row by row
    and Parquet files as tables with their metadata, since their pages are compressed.
    """
    wanted = [secret.encode() for secret in secrets]
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        for where, content in _contents(path):
            if any(secret in content for secret in wanted):
                found.append(f"{path.relative_to(folder)}{where}")
    return found


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    raw = path.read_bytes()
    yield "", raw
    if raw.startswith(b"SQLite format 3"):
        yield from _rows(path)
    elif raw.startswith(b"PAR1"):
        table = pq.read_table(path)
        yield " (table)", repr(table.to_pylist()).encode()
        yield " (metadata)", repr(table.schema.metadata).encode()
    elif raw.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                yield f" ({name})", archive.read(name)
    elif unpacked := _unpacked(raw):
        yield " (unpacked)", unpacked


def _rows(path: Path) -> Iterator[tuple[str, bytes]]:
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in names:
            for row in connection.execute(f'SELECT * FROM "{table}"'):
                yield f" ({table})", b"\0".join(map(_bytes, row))


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value + b"\0" + (_unpacked(value) or b"")
    return str(value).encode()


def _unpacked(raw: bytes) -> bytes | None:
    """What gzip or zlib packed; None where it is neither."""
    try:
        return gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else zlib.decompress(raw)
    except (zlib.error, OSError, EOFError):
        return None
