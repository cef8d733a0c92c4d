"""Progress of files on their way to an object store and back."""

from __future__ import annotations

import threading
import time

from distill_dagster.core.progress import report_progress

PARALLEL_FILES = 8
LONG_S = 1.0
"""Seconds after which moving files reports how far it is."""


class TransferReporter:
    """Reports how many files were moved, as soon as it takes long."""

    def __init__(self, work: str, total: int) -> None:
        self.work, self.done, self.total, self.started = work, 0, total, time.monotonic()
        self._lock = threading.Lock()

    def add(self) -> None:
        """One file more was moved."""
        with self._lock:
            self.done += 1
            if time.monotonic() - self.started > LONG_S:
                report_progress(self.work, self.done, self.total)
