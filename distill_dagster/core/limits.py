"""Limits on threads and memory of one step, and the folder it spills to."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_BATCH_ROWS = 16_384


def count_cores() -> int:
    """The number of CPU cores that this process may use; 2 if the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2


@dataclass(frozen=True)
class ResourceLimits:
    """Limits on the resources of one step. Results never depend on them.

    Args:
        threads: threads of compiled code; by default one per core.
        batch_rows: number of texts in memory at a time, per thread.
        verify_rows: number of rows whose shingles are in memory at a time (about 8 bytes per word).
        memory_mb: DuckDB's memory limit in MiB; above it, DuckDB spills. Texts that take less than half of it are read
            once and stay in memory.
        spill: folder for temporary files; by default the system's.
    """

    threads: int = field(default_factory=count_cores)
    batch_rows: int = DEFAULT_BATCH_ROWS
    verify_rows: int = 1_000_000
    memory_mb: int = 2048
    spill: Path | None = None

    @contextmanager
    def make_folder(self) -> Iterator[Path]:
        """Make an empty temporary folder in the spill folder, and remove it at the end."""
        if self.spill is not None:
            self.spill.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="dedup-", dir=self.spill) as name:
            yield Path(name)
