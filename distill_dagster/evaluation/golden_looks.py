"""The log of golden looks: every time that a student is scored on golden, which is for final settings only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_dagster.core.files import append_durably, lock_file


def append_golden_look(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one JSON line. It is durable when this function returns. Earlier lines never change."""
    line = json.dumps(dict(entry), ensure_ascii=False, sort_keys=True, allow_nan=False).encode() + b"\n"
    with lock_file(path.with_name(f".{path.name}.lock")):
        append_durably(path, line)


def read_golden_looks(path: Path) -> list[dict[str, Any]]:
    """All complete entries, oldest first. Returns an empty list if the file does not exist."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # splitlines also splits at U+2028
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue  # a crash cut it short
        if isinstance(entry, dict):
            entries.append(entry)
    return entries
