"""Report the progress of long work to a listener: the command line shows a bar, an asset writes to its log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

ProgressListener = Callable[[str, int, int], None]
"""Called with the name of the work, the number of units done, and their total."""

_listener: ProgressListener | None = None


def report_progress(work: str, done: int, total: int) -> None:
    """Tell the listener, if there is one, how much of the work is done."""
    if _listener is not None:
        _listener(work, done, total)


@contextlib.contextmanager
def listen_to_progress(listener: ProgressListener) -> Iterator[None]:
    """Within this block `listener` receives the progress of the whole process, and no other listener does."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


@contextlib.contextmanager
def add_progress_listener(listener: ProgressListener) -> Iterator[None]:
    """Within this block `listener` receives progress too."""
    outer = _listener

    def report_to_both(work: str, done: int, total: int) -> None:
        listener(work, done, total)
        if outer is not None:
            outer(work, done, total)

    with listen_to_progress(report_to_both):
        yield
