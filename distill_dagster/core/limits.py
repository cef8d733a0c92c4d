"""What one step may take of the machine: threads, memory, and where it spills."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_BATCH_ROWS = 16_384


@dataclass(frozen=True)
class ResourceLimits:
    """What the work may take.

    Args:
        threads: of the kernel; by default one per core. Results never depend on it.
        batch_rows: texts in memory at a time, per thread.
        verify_rows: rows whose shingles are in memory at a time (about 8 bytes a word).
        memory_mb: DuckDB's memory limit, past which it spills. Texts that take less than half of it stay in memory
            between the two times they are read.
        spill: the folder for temporary files, by default the system's.
    """

    threads: int = field(
        default_factory=lambda: len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2
    )
    batch_rows: int = DEFAULT_BATCH_ROWS
    verify_rows: int = 1_000_000
    memory_mb: int = 2048
    spill: Path | None = None

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty temporary folder in the spill folder."""
        if self.spill is not None:
            self.spill.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="dedup-", dir=self.spill) as name:
            yield Path(name)
