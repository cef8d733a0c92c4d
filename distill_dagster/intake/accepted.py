"""Append accepted prompts to the file of a slice, durable when it returns."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from distill_dagster.core.files import sync_folder
from distill_dagster.tasks.accepted import AcceptedPrompt, _is_complete_line


def append_accepted(path: Path, rows: Sequence[AcceptedPrompt]) -> None:
    """Add prompts at the end, durable when this returns. One writer at a time: the caller holds the inbox's lock."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b") as handle:
        content = handle.read()
        end = content.rfind(b"\n") + 1
        if _is_complete_line(content[end:]):
            end = len(content)
        handle.truncate(end)
        handle.seek(end)
        if content[:end] and not content[:end].endswith(b"\n"):
            handle.write(b"\n")
        for row in rows:
            handle.write(row.model_dump_json(exclude_none=True).encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
    if new:
        for folder in (path.parent, path.parent.parent):
            sync_folder(folder)
