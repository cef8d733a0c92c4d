"""Progress of long work, told to whoever listens: the command line shows a bar, an asset writes to its log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

ProgressListener = Callable[[str, int, int], None]
"""Called with what is being done, how much is done, and how much there is."""

_listener: ProgressListener | None = None


def report_progress(what: str, done: int, total: int) -> None:
    if _listener is not None:
        _listener(what, done, total)


@contextlib.contextmanager
def listen_to_progress(listener: ProgressListener) -> Iterator[None]:
    """Within this block progress of the whole process goes to `listener`."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


@contextlib.contextmanager
def add_progress_listener(listener: ProgressListener) -> Iterator[None]:
    """Within this block progress goes to `listener` and to whoever listened before."""
    outer = _listener

    def both(what: str, done: int, total: int) -> None:
        listener(what, done, total)
        if outer is not None:
            outer(what, done, total)

    with listen_to_progress(both):
        yield
