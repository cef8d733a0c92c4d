"""Print what a run did: failures, the leaderboard, the report, totals, the next command, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.markup import escape

from distill_dagster.cli.console import build_table, err, out, print_json, print_table
from distill_dagster.core.formatting import count_noun, format_seconds, format_usd
from distill_dagster.core.paths import Home
from distill_dagster.core.processes import measure_peak_mb
from distill_dagster.tasks import TaskFolder

if TYPE_CHECKING:
    from distill_dagster.orchestration import RunSummary


EXIT_PENDING = 3
"""Exit code of a command whose answers can only come later: a batch, or a pause. 1 is a failure, 2 is bad input."""
KEPT = "What was made is kept, and no answer that arrived is paid for again. The same command continues."
"""What a person needs to know after Ctrl-C."""


def print_failures(summary: RunSummary) -> None:
    """Print one line for each artifact that failed, waits for a batch, or is blocked by one of those."""
    for name, message in summary.failed.items():
        err.print(f"[red]failed[/red] {escape(name)}: {escape(message)}", soft_wrap=True)
    for name, why in summary.pending.items():
        out.print(f"[yellow]waiting[/yellow] {escape(name)}: {escape(why)}", soft_wrap=True)
    for name, why in summary.blocked.items():
        err.print(f"[yellow]blocked[/yellow] {escape(name)}: {escape(why)}", soft_wrap=True)


def _read_metrics(home: Home, folder: TaskFolder, student: str) -> dict[str, Any] | None:
    """The figures of a student's report, or None if there is no report."""
    path = home.get_report_folder(folder.name, student) / "metrics.json"
    return json.loads(path.read_text()) if path.exists() else None


def _get_page(home: Home, folder: TaskFolder, student: str) -> Path:
    return home.get_report_folder(folder.name, student) / "report.html"


def print_leaderboard(home: Home, folder: TaskFolder, students: Sequence[str]) -> dict[str, Any] | None:
    """Print one table of all systems of these students, and a verdict and the path of the report for each student.

    Returns:
        The figures for `--json`, or None if no student has a report.
    """
    from distill_dagster.evaluation.leaderboard import build_leaderboard, describe_best_rows
    from distill_dagster.evaluation.leaderboard_page import find_best_student, read_reports, write_leaderboard
    from distill_dagster.kinds import get_kind

    reports_folder = home.reports / folder.name
    reports = read_reports(reports_folder, students)
    if not reports:
        return None
    board = build_leaderboard(reports)
    headings = ("system", "student", board.metric.replace("_", " "), "latency", "size", "cost per 1,000")
    title = f"{folder.name}: {count_noun(board.items, 'golden item')}"
    table = build_table(*headings, title=title, whole=headings[:2], numbers=headings[2:], edges=False)
    for row in board.rows:
        table.add_row(*(escape(cell) for cell in row.format_cells()))
    print_table(table)
    verdicts = {}
    for student, figures in reports.items():
        lead = figures.get("lead", figures["verdict"]["text"])  # a report of an earlier version has no lead
        switch, cost = (figures.get("meaning", {}).get(part) for part in ("Switch", "Cost"))
        out.print()
        out.print(f"[bold]{escape(student)}[/bold]: {escape(lead)}", soft_wrap=not out.is_terminal, highlight=False)
        for heading, text in (("May I switch?", switch), ("Cost:", cost)):
            if text:
                out.print(f"{heading} {escape(text)}", soft_wrap=not out.is_terminal, highlight=False)
        if figures.get("notice"):
            out.print(f"[dim]{escape(figures['notice'])}[/dim]", soft_wrap=not out.is_terminal)
        page = _get_page(home, folder, student)
        out.print(f"Report: {page}", soft_wrap=True)
        verdicts[student] = figures["verdict"] | {"lead": lead, "switch": switch, "cost": cost, "report": str(page)}
        verdicts[student] |= {"distillation": figures.get("distillation")}
    spec, kind = folder.task.evaluation, get_kind(folder.task)
    best = find_best_student(reports_folder, board, list(reports), spec, kind)
    page = write_leaderboard(reports_folder, folder.name, list(folder.task.students), spec, kind)
    out.print()
    for sentence in (best, describe_best_rows(board)):
        if sentence:
            out.print(escape(sentence), soft_wrap=not out.is_terminal, highlight=False)
    for remark in board.remarks:
        out.print(f"[yellow]note[/yellow]: {escape(remark)}", soft_wrap=not out.is_terminal)
    out.print(f"All students on one page: {page}", soft_wrap=True)
    return board.to_json() | {"verdicts": verdicts, "best": best, "page": str(page)}


def print_report(home: Home, folder: TaskFolder, student: str) -> dict[str, Any] | None:
    """Print the result table of one student and the path of its report.

    Returns:
        The summary for `--json`, or None if there is no report.
    """
    metrics = _read_metrics(home, folder, student)
    if metrics is None:
        return None
    rows = metrics["summary"]
    golden = count_noun(metrics["systems"]["teacher"]["n"], "golden item")
    table = build_table(*(name.replace("_", " ") for name in rows[0]), title=f"{folder.name}, {student}: {golden}")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    print_table(table)
    out.print(escape(metrics["verdict"]["text"]), soft_wrap=not out.is_terminal)
    if metrics.get("notice"):
        out.print(f"[dim]{escape(metrics['notice'])}[/dim]", soft_wrap=not out.is_terminal)
    for number, step in enumerate(metrics.get("next_steps", ()), start=1):  # a report of an earlier version has none
        out.print(f"{number}. {escape(step)}", soft_wrap=not out.is_terminal, highlight=False)
    page = _get_page(home, folder, student)
    out.print(f"Report: {page}", soft_wrap=True)
    return {"report": str(page), "summary": rows, "verdict": metrics["verdict"]}


def print_totals(summary: RunSummary, is_free: bool) -> None:
    """Print what the command made and what it took, in one line. `is_free`: no teacher of the task costs money."""
    made = sum(len(partitions) for partitions in summary.partitions.values())
    parts = [f"{count_noun(made, 'artifact')} made in {format_seconds(summary.wall_s)}"]
    if summary.teacher_calls or summary.teacher_calls_cached:
        parts.append(f"{count_noun(summary.teacher_calls, 'request')} sent")
        parts.append(f"{summary.teacher_calls_cached:,} answered by the store")
    if tokens := summary.prompt_tokens + summary.completion_tokens:
        parts.append(f"{tokens:,} tokens")
    if summary.teacher_calls and not is_free:
        parts.append("cost unknown (no price)" if summary.cost_usd is None else format_usd(summary.cost_usd))
    if summary.failed:
        parts.append(f"{len(summary.failed):,} failed")
    if summary.blocked:
        parts.append(f"{len(summary.blocked):,} blocked")
    out.print("Total: " + ", ".join(parts), soft_wrap=not out.is_terminal, highlight=False)


def print_next(command: str, purpose: str) -> None:
    """Print the command that a person may want next."""
    text = f"Next: `[bold]{escape(command)}[/bold]` {escape(purpose)}"
    out.print(text, soft_wrap=not out.is_terminal, highlight=False)


def finish_command(folder: TaskFolder, summary: RunSummary, retry: str, **more: Any) -> None:
    """End a command that ran assets: print totals or its JSON object, and set the exit code.

    Args:
        folder: The task.
        summary: What the command did.
        retry: The command that continues after a failure.
        more: Further fields of the JSON object.

    Raises:
        Exit: Something failed, is blocked, or waits for a batch.
    """
    waits = summary.pending and not (summary.failed or summary.blocked)
    if waits:
        out.print(
            "[yellow]Nothing failed, but some answers have not arrived yet.[/yellow] The next `distill refresh` or "
            "`distill run` continues once they can come; a provider may take a day for a batch.",
            soft_wrap=True,
        )
    if summary.runs:
        print_totals(summary, folder.task.is_free)
    print_json(summary.to_json() | more | {"peak_mb": round(measure_peak_mb(), 1)})
    if summary.failed or summary.blocked:
        print_next(retry, "continues, once you have fixed what failed. What was made is kept.")
        raise typer.Exit(1)
    if waits:
        raise typer.Exit(EXIT_PENDING)
