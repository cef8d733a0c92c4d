"""Report the progress of long work to a listener: the command line shows a display, an asset writes to its log."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from distill_dagster.core.formatting import format_usd


@dataclass(frozen=True)
class Progress:
    """How much of some work is done, in units of that work: requests, training steps, tables.

    `stored` units of `done` were there already and took no time. `tokens` and `usd` are what the others took so far.
    `usd` is None if nothing is paid or a price is unknown. `artifact` is the artifact that the work is for, `finished`
    whether it was made.
    """

    work: str
    done: int = 0
    total: int = 0
    stored: int = 0
    tokens: int | None = None
    usd: float | None = None
    loss: float | None = None
    artifact: str = ""
    finished: bool = False
    waits_for: str = ""
    """Why nothing is done for a while. The next report with work ends the wait."""

    @property
    def share(self) -> float | None:
        """The share of the units that take time which is done, or None if it cannot be known yet."""
        sent, to_send = self.done - self.stored, self.total - self.stored
        return sent / to_send if 0 < sent <= to_send else None

    @property
    def projected_tokens(self) -> float | None:
        """The tokens that all of the work will take if it goes on like this."""
        return self.tokens / self.share if self.tokens and self.share else None

    @property
    def projected_usd(self) -> float | None:
        """The USD that all of the work will cost if it goes on like this."""
        return self.usd / self.share if self.usd and self.share else None

    def list_figures(self) -> list[str]:
        """What the work took and gave so far, in words."""
        figures = []
        if self.tokens:
            figures.append(f"{self.tokens:,}{_format_projection(self.projected_tokens, self.share)} tokens")
        if self.usd:
            projected = self.projected_usd if self.share != 1 else None
            figures.append(format_usd(self.usd) + (f" of about {format_usd(projected)}" if projected else ""))
        if self.loss is not None:
            figures.append(f"loss {self.loss:.3f}")
        if self.stored:
            figures.append(f"{self.stored:,} from the store")
        return figures

    def __str__(self) -> str:
        counted = f"{self.work}: {self.done:,} of {self.total:,}" if self.total else self.work
        return ", ".join([counted, *self.list_figures()])


ProgressListener = Callable[[Progress], None]

_listener: ProgressListener | None = None
_artifact = ""


def report_progress(
    work: str,
    done: int,
    total: int,
    *,
    stored: int = 0,
    tokens: int | None = None,
    usd: float | None = None,
    loss: float | None = None,
) -> None:
    """Tell the listener, if there is one, how much of the work is done. The arguments are fields of `Progress`."""
    if _listener is not None:
        _listener(Progress(work, done, total, min(stored, done), tokens, usd, loss, _artifact))


def report_wait(why: str) -> None:
    """Tell the listener, if there is one, that nothing is done for a while, and why."""
    if _listener is not None:
        _listener(Progress("", artifact=_artifact, waits_for=why))


def report_finished_artifact() -> None:
    """Tell the listener, if there is one, that the artifact of the current block was made."""
    if _listener is not None:
        _listener(Progress("", artifact=_artifact, finished=True))


@contextlib.contextmanager
def work_on_artifact(name: str) -> Iterator[None]:
    """Within this block, all progress of the process belongs to this artifact. The listener is told when it begins."""
    global _artifact
    before, _artifact = _artifact, name
    try:
        report_progress("", 0, 0)
        yield
    finally:
        _artifact = before


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

    def report_to_both(progress: Progress) -> None:
        listener(progress)
        if outer is not None:
            outer(progress)

    with listen_to_progress(report_to_both):
        yield


def _format_projection(projected: float | None, share: float | None) -> str:
    """` of about 52,000`, rounded to two digits; nothing once all is done."""
    if projected is None or share == 1:
        return ""
    step = 10 ** max(0, len(str(round(projected))) - 2)
    return f" of about {round(projected / step) * step:,}"
