"""Show what a run does while it runs: some lines that are kept up to date on a terminal, a line now and then elsewhere.

A step writes to file descriptors 1 and 2 that Dagster redirects. So the display writes to a copy of stderr, which is
made before the first step.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from distill_dagster.cli.console import err, mode
from distill_dagster.core import progress
from distill_dagster.core.formatting import format_clock, format_seconds
from distill_dagster.core.progress import Progress
from distill_dagster.pipeline.run_events import RunEvent

MAX_WIDTH = 100
LINE_INTERVAL_S = 20.0
"""Seconds between two lines about the same work where there is no terminal."""
RATE_WINDOW_S = 60.0
"""The rate is that of the last so many seconds."""
MIN_RATE_S = 1.0
"""No rate is shown before so many seconds: it would jump."""


class RateMeter:
    """The rate at which one piece of work proceeds, over the last minute. What the store had does not count."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, made: Progress, now: float) -> None:
        """Note a report."""
        sent = made.done - made.stored
        if not self._points:
            # The first unit took its time before this report. Without a start the first rate would be infinite.
            self._points.append((now, sent))
        elif now - self._points[-1][0] >= RATE_WINDOW_S / 120:
            self._points.append((now, sent))
            while len(self._points) > 2 and now - self._points[1][0] > RATE_WINDOW_S:
                self._points.popleft()

    def compute(self, made: Progress, now: float) -> float | None:
        """Units per second up to now, or None if it is too early to say."""
        if not self._points or now - self._points[0][0] < MIN_RATE_S:
            return None
        began, first = self._points[0]
        sent = made.done - made.stored - first
        return sent / (now - began) if sent > 0 else None


class RunDisplay:
    """What is known about the current run, and how it looks."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._event = RunEvent("start")
        self._artifact = ""
        self._artifact_began = self._began
        self._made = Progress("getting ready")
        self._meter = RateMeter()
        self._line_at = self._began
        self._waiting = ""
        self._waits_since = self._began
        self._started: list[str] = []
        self._finished: set[str] = set()
        self._lines: list[str] = []
        self._figures: dict[str, Progress] = {}
        self._spinner = Spinner("dots")

    def notify(self, event: RunEvent) -> None:
        """Take in an event of a run: a `RunListener`."""
        with self._change():
            if event.kind == "start":
                self._event, self._waiting, self._started, self._finished = event, "", [], set()
                self._show_artifact(event.artifacts[0])  # until one says that it begins
            elif event.kind == "waiting":
                self._wait_for(event.why)
            elif event.kind == "resumed":
                waited = format_seconds(time.monotonic() - self._waits_since)
                self._print(f"[dim]waited {waited}: {escape(self._waiting)}[/dim]")
                self._waiting = ""
                self._show_artifact(self._artifact)
            else:
                self._end_run(event)

    def listen(self, made: Progress) -> None:
        """Take in a progress report: a `ProgressListener`."""
        with self._change():
            now = time.monotonic()
            if made.artifact and made.artifact not in self._started:
                self._started.append(made.artifact)
                self._show_artifact(made.artifact)
            if made.finished:
                self._finished.add(made.artifact)
                self._print_made(made.artifact)
            if made.waits_for:
                self._wait_for(made.waits_for)
            if not made.work:
                return
            if made.work != self._made.work or made.done < self._made.done:
                self._meter = RateMeter()
            self._made, self._waiting = made, ""
            self._meter.add(made, now)
            if made.tokens or made.stored or made.loss is not None:
                self._figures[self._artifact] = made
            if not self.console.is_terminal and now - self._line_at >= LINE_INTERVAL_S:
                self._line_at = now
                self._print(f"  {escape(self._format_step())}{escape(self._format_made(now))}")

    def print_line(self, text: str) -> None:
        """Print a line above what is kept up to date."""
        with self._change():
            self._print(escape(text))

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Change what is shown, then print the lines that are due.

        Printing takes the lock of the live display, which takes this one to render. So it is released before.
        """
        with self._lock:
            yield
            lines, self._lines = self._lines, []
        for line in lines:
            self.console.print(line, soft_wrap=True, highlight=False)

    def _wait_for(self, why: str) -> None:
        if not self._waiting:
            self._waits_since = time.monotonic()
        if not self.console.is_terminal and why != self._waiting:  # on a terminal the display says so
            self._print(f"[yellow]waiting[/yellow]: {escape(why)}")
        self._waiting = why

    def _show_artifact(self, name: str) -> None:
        self._artifact, self._artifact_began = name, time.monotonic()
        self._made, self._meter = Progress("starting"), RateMeter()

    def _end_run(self, event: RunEvent) -> None:
        self._started += [name for name in event.artifacts if name not in self._started]
        for name in self._started:
            if why := event.reasons.get(name):
                colour, mark = ("yellow", "…") if event.kind == "pending" else ("red", "✗")
                self._print(f"[{colour}]{mark}[/{colour}] {self._number(name)}{escape(name)}: {escape(why)}")
            elif name not in self._finished:
                self._print_made(name, event.took_s.get(name))
        self._event, self._waiting, self._artifact = RunEvent("start"), "", ""
        self._made, self._meter = Progress("getting ready"), RateMeter()

    def _print_made(self, name: str, took_s: float | None = None) -> None:
        seconds = format_seconds(time.monotonic() - self._artifact_began if took_s is None else took_s)
        figures = self._figures.pop(name, None)
        took = ", ".join([seconds, *(figures.list_figures() if figures else [])])
        self._print(f"[green]✓[/green] {self._number(name)}{escape(name)} [dim]{took}[/dim]")

    def _print(self, line: str) -> None:
        self._lines.append(line)

    def _number(self, name: str) -> str:
        """`3/13 `, padded so that names stand below each other. Dagster chooses the order within a run."""
        if not self._event.steps or name not in self._event.artifacts:
            return ""
        position = self._started.index(name) if name in self._started else len(self._started)
        steps = str(self._event.steps)
        return f"{self._event.step + position:>{len(steps)}}/{steps} "

    def _format_step(self) -> str:
        number = self._number(self._artifact).strip().replace("/", " of ")
        return f"step {number}  {self._artifact}: " if number else f"{self._artifact}: " if self._artifact else ""

    def _format_made(self, now: float) -> str:
        rate = self._meter.compute(self._made, now)
        return ", ".join([str(self._made), *self._format_rate(rate)])

    def _format_rate(self, rate: float | None) -> list[str]:
        if rate is None or not self._made.total:
            return []
        speed = f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min"
        left = (self._made.total - self._made.done) / rate
        return [speed, f"{format_clock(left)} left"] if left else [speed]

    def __rich__(self) -> RenderableType:
        """Two to four lines: step and clock; work, bar, count, rate and time left; what it took; whom it waits for."""
        with self._lock:
            return self._render()

    def _render(self) -> RenderableType:
        now = time.monotonic()
        width = min(self.console.width, MAX_WIDTH)
        number = self._number(self._artifact).strip().replace("/", " of ")
        head = Table.grid(padding=(0, 1))
        head.width = width
        head.add_column()
        head.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        head.add_column(justify="right", no_wrap=True)
        title = Text.assemble((f"step {number}  " if number else "", "bold"), self._artifact or self._made.work)
        head.add_row(self._spinner, title, Text(format_clock(now - self._began), style="dim"))
        lines: list[RenderableType] = [head]
        if self._waiting:
            waited = format_clock(now - self._waits_since)
            lines.append(Text(f"  waiting {waited}: {self._waiting}", style="yellow"))
            return Group(*lines)
        if self._artifact:
            lines.append(self._render_work(now, width))
        if figures := [figure for figure in self._made.list_figures() if not figure.startswith("loss")]:
            lines.append(Text("  " + " · ".join(figures), style="dim", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)

    def _render_work(self, now: float, width: int) -> RenderableType:
        made = self._made
        row: list[RenderableType] = [Text("  " + made.work)]
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True, overflow="ellipsis")
        if made.total:
            grid.width = width
            grid.add_column(ratio=1, min_width=4)
            row.append(ProgressBar(total=made.total, completed=made.done))
            counts = [f"{made.done:,}/{made.total:,}", *self._format_rate(self._meter.compute(made, now))]
            if made.loss is not None:
                counts.append(f"loss {made.loss:.3f}")
            for count in counts:
                grid.add_column(no_wrap=True, justify="right")
                row.append(Text(count))
        grid.add_row(*row)
        return grid


@contextmanager
def show_progress() -> Iterator[RunDisplay]:
    """Show the progress of the block: live on a terminal, a line now and then elsewhere, nothing with `--quiet`."""
    with _copy_stderr() as console:
        display = RunDisplay(console)
        live = Live(
            display,
            console=console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,  # a step redirects both by itself
            redirect_stderr=False,
        )
        shown = live if console.is_terminal and not mode.quiet else nullcontext()
        with shown, progress.listen_to_progress(display.listen):
            yield display


@contextmanager
def _copy_stderr() -> Iterator[Console]:
    """A console on a copy of stderr. Where stderr is no file, as in tests, it is stderr itself."""
    try:
        copied = os.dup(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        yield err
        return
    with os.fdopen(copied, "w", encoding="utf-8", errors="replace", buffering=1) as stream:
        yield Console(file=stream, emoji=False, highlight=False, quiet=mode.quiet)
