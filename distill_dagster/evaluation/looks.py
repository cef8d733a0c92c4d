"""The log of golden looks: golden is scored with final settings only, and each time is written down."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append_golden_look(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one JSON line, on disk before this returns. Lines are never changed or removed.

    A line that a crash cut short is closed first, so that it cannot swallow the new one.
    """
    line = json.dumps(dict(entry), ensure_ascii=False, sort_keys=True, allow_nan=False).encode() + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            line = b"\n" + line
        # One write of one line: two processes that append at once do not mix their lines.
        if os.write(descriptor, line) != len(line):
            raise OSError(f"the disk took only a part of a line of {path}")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if new:
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read_golden_looks(path: Path) -> list[dict[str, Any]]:
    """All complete entries, oldest first; none where the file does not exist."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # splitlines would cut at U+2028 too
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut short by a crash
        if isinstance(entry, dict):
            entries.append(entry)
    return entries
