"""Print what a run does: a progress bar, failures, the report, and the exit code at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from distill_dagster.cli.options import err, out
from distill_dagster.core import progress
from distill_dagster.core.paths import Home
from distill_dagster.core.processes import measure_peak_mb
from distill_dagster.tasks import TaskFolder

if TYPE_CHECKING:
    from distill_dagster.orchestration import RunSummary


EXIT_PENDING = 3
"""Exit code of a command whose provider batches have not ended yet. 1 is a failure, 2 is bad input."""


@contextmanager
def show_progress() -> Iterator[Any]:
    """Show a bar for the current run on a terminal, and a line per finished run elsewhere."""
    started = time.perf_counter()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        bar = bars.add_task("", total=None)
        last: dict[str, Any] = {"what": "", "at": 0.0}

        def notify(event: str, what: str, why: str) -> None:
            if event in ("start", "resumed"):
                last["what"] = what
                bars.update(bar, description=escape(what), completed=0, total=None)
            elif event == "pending":
                bars.console.print(f"[yellow]…[/yellow] {escape(what)} [dim]is waiting for its batch[/dim]")
            elif event == "waiting":
                bars.console.print(f"[yellow]{escape(what)} is waiting: {escape(why)}[/yellow]", soft_wrap=True)
            else:
                mark = "[green]✓[/green]" if event == "done" else "[red]✗[/red]"
                bars.console.print(f"{mark} {escape(what)} [dim]{time.perf_counter() - started:.0f} s[/dim]")
                if why:
                    bars.console.print(f"  {escape(why)}", soft_wrap=True)

        def listen(what: str, done: int, total: int) -> None:
            bars.update(bar, description=escape(f"{last['what']}: {what}"), completed=done, total=total)
            if not err.is_terminal and (time.perf_counter() - last["at"] > 20 or done == total):
                last["at"] = time.perf_counter()
                err.print(f"  {escape(what)}: {done} of {total}", highlight=False)

        with progress.listen_to_progress(listen):
            yield notify


def print_failures(summary: RunSummary) -> None:
    """Print one line for each artifact that failed, waits for a batch, or is blocked by one of those."""
    for name, message in summary.failed.items():
        err.print(f"[red]failed[/red] {escape(name)}: {escape(message)}", soft_wrap=True)
    for name, why in summary.pending.items():
        out.print(f"[yellow]waiting[/yellow] {escape(name)}: {escape(why)}", soft_wrap=True)
    for name, why in summary.blocked.items():
        err.print(f"[yellow]blocked[/yellow] {escape(name)}: {escape(why)}", soft_wrap=True)


def print_report(home: Home, folder: TaskFolder, student: str) -> bool:
    """Print the result table of one student and the path of its report. Returns False if there is no report."""
    path = home.get_report_folder(folder.name, student) / "metrics.json"
    if not path.exists():
        return False
    metrics = json.loads(path.read_text())
    rows = metrics["summary"]
    table = Table(title=f"{folder.name}, student {student}: {metrics['systems']['teacher']['n']} golden items")
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    out.print(table)
    out.print(escape(metrics["verdict"]["text"]))
    if metrics.get("notice"):
        out.print(f"[dim]{escape(metrics['notice'])}[/dim]")
    out.print(f"Report: {path.with_name('report.html')}", soft_wrap=True)
    return True


def finish_command(summary: RunSummary, as_json: bool, **more: Any) -> None:
    """End a command that ran assets: print its JSON object and set the exit code.

    Raises:
        Exit: Something failed, is blocked, or waits for a batch.
    """
    waits = summary.pending and not (summary.failed or summary.blocked)
    if waits:
        out.print(
            "[yellow]Nothing failed, but some answers have not arrived yet.[/yellow] A provider may take a day for a "
            "batch. Its sensor continues when it ends, and so does the next `distill refresh` or `distill run`.",
            soft_wrap=True,
        )
    if as_json:
        print(json.dumps(summary.to_json() | more | {"peak_mb": round(measure_peak_mb(), 1)}))
    if summary.failed or summary.blocked:
        raise typer.Exit(1)
    if waits:
        raise typer.Exit(EXIT_PENDING)
