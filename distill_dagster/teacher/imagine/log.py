"""Append rounds of imagined prompts to the file of a slice, one process at a time. `tasks.imagined` reads the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from distill_dagster.core.files import append_durably, lock_file
from distill_dagster.tasks.imagined import (
    GenerationStart,
    ImaginedPrompt,
    ImagineHistory,
    ImagineLine,
    ImagineRound,
    read_imagined,
    read_imagined_until,
)

LOCK_TIMEOUT_S = 600.0
"""How long to wait while another process imagines for the same slice. Its prompts need not be asked for again."""


@contextmanager
def lock_imagined_file(path: Path) -> Iterator[None]:
    """Hold the lock of one slice's file, across processes.

    Raises:
        DistillError: another process held the lock for `LOCK_TIMEOUT_S` seconds.
    """
    busy = (
        f"Another process has been imagining prompts for {path.stem} for {LOCK_TIMEOUT_S / 60:.0f} minutes. Wait until "
        f"it ends and run this again. Prompts that it accepts are not asked for again."
    )
    with lock_file(path.with_name(f".{path.stem}.lock"), LOCK_TIMEOUT_S, busy):
        yield


def append_round(path: Path, prompts: Sequence[ImaginedPrompt], ended: ImagineRound) -> None:
    """Append a round, durable when this returns. The caller holds `lock_imagined_file`."""
    _append_lines(path, [*prompts, ended])


def start_new_generation(path: Path) -> ImagineHistory:
    """Retire all prompts of a slice and begin a new generation, whose requests differ from all earlier ones."""
    with lock_imagined_file(path):
        _append_lines(path, [GenerationStart(asked_at=get_timestamp())])
        return read_imagined(path)


def get_timestamp() -> str:
    """Return the current time in UTC, ISO 8601 with seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append_lines(path: Path, lines: Sequence[ImagineLine]) -> None:
    _, end = read_imagined_until(path)  # lines after it belong to a round that never ended
    append_durably(path, b"".join(line.model_dump_json().encode() + b"\n" for line in lines), keep_until=end)
