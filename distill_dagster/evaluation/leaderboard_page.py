"""Read the reports of a task's students, and write the page that compares all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core import plots
from distill_dagster.core.files import lock_file, write_atomically
from distill_dagster.evaluation.formatting import format_metric_name_in_sentence
from distill_dagster.evaluation.html_templates import get_html_environment
from distill_dagster.evaluation.leaderboard import (
    Leaderboard,
    LeaderboardRow,
    build_leaderboard,
    compare_students,
    describe_best_rows,
    describe_best_student,
)
from distill_dagster.evaluation.metrics import DISTILLED
from distill_dagster.evaluation.report import METRICS_FILE, PREDICTIONS_FILE, REPORT_FILE
from distill_dagster.evaluation.system_names import SYSTEM_MEANINGS, SYSTEM_TITLES

if TYPE_CHECKING:
    from distill_dagster.config import EvaluationSpec
    from distill_dagster.kinds import Kind

PAGE_FILE = "leaderboard.html"
"""The page, in a task's folder of reports. No student has this name: a student's name has no dot."""
_LOCK = ".leaderboard.lock"


def read_reports(folder: Path, students: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The figures of the students that have a report, in the order of `students`.

    Args:
        folder: the task's folder of reports.
    """
    paths = {student: folder / student / METRICS_FILE for student in students}
    return {student: json.loads(path.read_text(encoding="utf-8")) for student, path in paths.items() if path.exists()}


def find_best_student(
    folder: Path, board: Leaderboard, students: Sequence[str], spec: EvaluationSpec, kind: Kind
) -> str:
    """Which of several students scores highest on golden, and whether clearly. Empty for one student."""
    if len(students) < 2:
        return ""
    import polars as pl

    scores = {row.student: row.score or 0.0 for row in board.rows if row.system == DISTILLED}
    tables = {name: pl.read_parquet(folder / name / PREDICTIONS_FILE) for name in students}
    best = max(scores, key=lambda name: scores[name])
    return describe_best_student(compare_students(tables, best, spec, kind), spec.confidence)


def write_leaderboard(folder: Path, task: str, students: Sequence[str], spec: EvaluationSpec, kind: Kind) -> Path:
    """Write the page next to the reports of those students that have one, and return its path.

    Args:
        folder: the task's folder of reports, with at least one.
    """
    page = folder / PAGE_FILE
    # Of two processes whose students end together, the second to write knows both reports.
    with lock_file(folder / _LOCK):
        reports = read_reports(folder, students)
        board = build_leaderboard(reports)
        best = find_best_student(folder, board, list(reports), spec, kind)
        write_atomically(page, _render_page(task, board, reports, best))
    return page


def _render_page(task: str, board: Leaderboard, reports: Mapping[str, Mapping[str, Any]], best: str) -> str:
    latencies = [None if row.latency_s is None else 1000 * row.latency_s for row in board.rows]
    drawn = {
        "latency": _draw_tradeoff(board, latencies, "milliseconds for one answer"),
        "cost": _draw_tradeoff(board, [row.cost_usd_per_1k for row in board.rows], "USD for 1,000 answers"),
    }
    template = get_html_environment().get_template("leaderboard.html.j2")
    return template.render(
        task=task,
        board=board,
        best=best,
        best_rows=describe_best_rows(board),
        rows=[(row, row.format_cells()) for row in board.rows],
        reports={student: (figures, f"{student}/{REPORT_FILE}") for student, figures in reports.items()},
        created_at=max(figures["created_at"] for figures in reports.values()),
        meanings={SYSTEM_TITLES[name]: meaning for name, meaning in SYSTEM_MEANINGS.items()},
        images={n: (plots.to_data_uri(png), plots.compute_css_width(png)) for n, png in drawn.items() if png},
        items_are_graded=False,
    )


def _draw_tradeoff(board: Leaderboard, values: Sequence[float | None], label: str) -> bytes | None:
    """The systems by a figure that should be small, and their score. None if fewer than two are known."""
    points = [
        (_name_row(row), x, row.score, row.is_best)
        for row, x in zip(board.rows, values, strict=True)
        if x is not None and row.score is not None
    ]
    return plots.plot_tradeoff(points, "", label, format_metric_name_in_sentence(board.metric)) if points[1:] else None


def _name_row(row: LeaderboardRow) -> str:
    return f"{row.student} {row.format_cells()[0]}".strip()
