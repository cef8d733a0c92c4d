"""Append rounds of imagined prompts to the file of a slice, one process at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import append_durably
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
"""Another process may be imagining for the same slice; what it brings need not be asked again."""


@contextmanager
def lock_imagined_file(path: Path) -> Iterator[None]:
    """Alone with one slice's file, across processes.

    Raises:
        DistillError: another process has been at it for `LOCK_S` seconds.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(path.with_name(f".{path.stem}.lock"), timeout=LOCK_TIMEOUT_S):
            yield
    except Timeout:
        raise DistillError(
            f"Another process has been imagining prompts for {path.stem} for {LOCK_TIMEOUT_S / 60:.0f} minutes. Wait for its "  # noqa: E501
            f"end and run this again; what it accepts is not asked for again."
        ) from None


def append_round(path: Path, prompts: Sequence[ImaginedPrompt], ended: ImagineRound) -> None:
    """Add a round at the end, durable when this returns. The caller is within `writing`."""
    _append_lines(path, [*prompts, ended])


def start_new_generation(path: Path) -> ImagineHistory:
    """Retire all prompts of a slice and begin a new generation; what was asked for before is asked differently then."""
    with lock_imagined_file(path):
        _append_lines(path, [GenerationStart(asked_at=get_timestamp())])
        return read_imagined(path)


def get_timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _append_lines(path: Path, lines: Sequence[ImagineLine]) -> None:
    _, end = read_imagined_until(path)  # prompts after it belong to a round that never ended
    append_durably(path, b"".join(line.model_dump_json().encode() + b"\n" for line in lines), keep_until=end)
