"""Append rounds of imagined prompts to the file of a slice, one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import sync_folder
from distill_dagster.tasks.imagined import Fresh, Imagination, Imagined, Round, _content, _Line, _read, read_imagined

LOCK_S = 600.0
"""Another process may be imagining for the same slice; what it brings need not be asked again."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Alone with one slice's file, across processes.

    Raises:
        DistillError: another process has been at it for `LOCK_S` seconds.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.stem}.lock"), timeout=LOCK_S):
            yield
    except Timeout:
        raise DistillError(
            f"Another process has been imagining prompts for {path.stem} for {LOCK_S / 60:.0f} minutes. Wait for its "
            f"end and run this again; what it accepts is not asked for again."
        ) from None


def append_round(path: Path, prompts: Sequence[Imagined], ended: Round) -> None:
    """Add a round at the end, durable when this returns. The caller is within `writing`."""
    _append(path, [*prompts, ended])


def start_anew(path: Path) -> Imagination:
    """Retire all prompts of a slice and begin a new generation; what was asked for before is asked differently then."""
    with writing(path):
        _append(path, [Fresh(asked_at=now())])
        return read_imagined(path)


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append(path: Path, lines: Sequence[_Line]) -> None:
    _, end = _read(path, _content(path))
    new = not path.exists()
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b") as handle:
        handle.truncate(end)  # prompts of a round that never ended
        before = handle.read()
        if before and not before.endswith(b"\n"):
            handle.write(b"\n")
        for line in lines:
            handle.write(line.model_dump_json().encode() + b"\n")
        handle.flush()
        os.fsync(handle.fileno())
    if new:
        for folder in (path.parent, path.parent.parent, path.parent.parent.parent):
            sync_folder(folder)
