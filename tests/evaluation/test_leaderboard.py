"""The table over all students: what it shows once, what it shows for each, and which baseline."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.config import Task
from distill_dagster.evaluation.leaderboard import (
    LeaderboardRow,
    build_leaderboard,
    compare_students,
    describe_best_student,
    mark_best_rows,
)
from distill_dagster.evaluation.leaderboard_page import read_reports, write_leaderboard
from distill_dagster.evaluation.metrics import compute_metrics
from distill_dagster.evaluation.metrics_json import build_metrics_json
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs, write_report
from distill_dagster.kinds import get_kind
from tests.evaluation.build import LABELS, SPEC, marks, measured, patterns
from tests.support.task import TASK

_TASK = Task.model_validate(TASK)
RIGHT = {"teacher": 38, "base": 20, "seed_only": 25, "distilled": 36, "linear_probe": 35, "centroid": 24}


def _report(student: str, right: dict[str, int], seconds: float = 0.02, version: str = "d", items: int = 40) -> Any:
    systems = {name: marks(number, items - number) for name, number in right.items()}
    metrics = measured(systems, dict.fromkeys(right, seconds))
    return build_metrics_json(metrics, recommend(metrics), ReportInputs("mail", student, version, "s", "now", {}))


def test_the_teacher_and_what_is_no_student_stand_once() -> None:
    reports = {"large": _report("large", RIGHT, 0.5), "small": _report("small", RIGHT | {"distilled": 30}, 0.01)}
    board = build_leaderboard(reports)
    assert [(row.system, row.student) for row in board.rows] == [
        ("teacher", ""),
        *[(system, "large") for system in ("base", "seed_only", "distilled")],
        *[(system, "small") for system in ("base", "seed_only", "distilled")],
        ("linear_probe", ""),
        ("centroid", ""),
    ]
    assert (board.metric, board.items, board.remarks) == ("accuracy", 40, ())
    large, small = (row for row in board.rows if row.system == "distilled")
    assert (large.score, small.score) == (0.9, 0.75)
    assert large.latency_s == pytest.approx(0.5)
    cost = 1000 * 0.01 / 3600 * 0.1
    assert small.cost_usd_per_1k == pytest.approx(cost)
    cells = small.format_cells()
    assert cells[:2] == ("distilled", "small")
    assert cells[2].startswith("0.75 [0.")
    assert cells[3:] == ("10 ms", "–", "$0.00028")


def test_of_the_other_baselines_the_best_is_shown_with_its_student() -> None:
    with_slices = RIGHT | {"slice_label": 30}
    board = build_leaderboard({"large": _report("large", RIGHT), "small": _report("small", with_slices)})
    assert [(row.system, row.student) for row in board.rows][-2:] == [("linear_probe", ""), ("slice_label", "small")]


def test_a_task_without_labels_has_no_baseline() -> None:
    right = {name: RIGHT[name] for name in ("teacher", "base", "seed_only", "distilled")}
    board = build_leaderboard({"large": _report("large", right)})
    assert [row.system for row in board.rows] == ["teacher", "base", "seed_only", "distilled"]
    with pytest.raises(ValueError, match="needs a report"):
        build_leaderboard({})


def test_reports_that_are_hard_to_compare_are_named() -> None:
    mixed = {"large": _report("large", RIGHT), "small": _report("small", RIGHT, version="e", items=50)}
    assert [remark.split(".")[0] for remark in build_leaderboard(mixed).remarks] == [
        "The students were trained on different versions of the dataset",
        "The reports have different golden sets, so their scores cannot be compared",
    ]


def test_an_unknown_cost_is_not_zero() -> None:
    report = _report("large", RIGHT)
    report["systems"]["teacher"]["cost_usd_per_1k"] = None
    report["systems"]["teacher"]["model"] = "openai/big"
    report["systems"]["distilled"]["cost_usd_per_1k"] = None
    cells = {row.system: row.format_cells() for row in build_leaderboard({"large": report}).rows}
    assert cells["teacher"][-1] == "unknown"
    assert cells["distilled"][-1] == "own machine"


def _row(name: str, score: float, latency: float | None, cost: float | None) -> LeaderboardRow:
    return LeaderboardRow(name, "", score, None, None, latency, None, cost)


def test_a_system_is_marked_unless_another_one_beats_it_in_everything() -> None:
    rows = [
        _row("teacher", 0.95, 1.0, 4.0),
        _row("fast", 0.80, 0.001, 0.1),
        _row("good", 0.90, 0.010, 0.1),
        _row("beaten", 0.90, 0.020, 0.1),
        _row("equal", 0.90, 0.010, 0.1),
        _row("unknown", 0.50, None, 9.0),
    ]
    best = {row.system: row.is_best for row in mark_best_rows(rows)}
    assert best == dict.fromkeys(("teacher", "fast", "good", "equal", "unknown"), True) | {"beaten": False}


def _write_reports(folder: Path) -> dict[str, Any]:
    right = {"large": marks(180, 20), "small": marks(177, 23)}
    for student, pattern in right.items():
        (folder / student).mkdir()
        predictions = patterns({"teacher": "1" * 200, "distilled": pattern}, {"distilled": 0.01, "teacher": 0.5})
        metrics = compute_metrics(predictions, {"teacher": {"cost_usd_per_1k": 2.0}}, LABELS, SPEC)
        inputs = ReportInputs("<b>mail", student, "v", "s", "2026-01-02T03:04:05+00:00", {})
        write_report(folder / student, predictions, metrics, recommend(metrics), inputs)
    return read_reports(folder, ["large", "missing", "small"])


def test_the_page_compares_all_students_and_links_their_reports(tmp_path: Path) -> None:
    reports = _write_reports(tmp_path)
    assert list(reports) == ["large", "small"]
    page = write_leaderboard(tmp_path, "<b>mail", ["large", "missing", "small"], SPEC, get_kind(_TASK))
    html = page.read_text(encoding="utf-8")
    assert "&lt;b&gt;mail" in html
    assert "<b>mail" not in html
    for student in reports:
        assert f'<a href="{student}/report.html">' in html
        assert (page.parent / student / "report.html").exists()
    assert "Of the students large scores highest; small is not clearly behind" in html
    assert "Nothing beats these in score, latency and cost at once: teacher and distilled large." in html
    assert html.count("not beaten") == 2
    assert html.count("<img ") == 2
    assert not re.search(r"https?://|<script|url\(|@import", html)


@pytest.mark.ui
@pytest.mark.parametrize("width", [400, 1200])
def test_the_page_fits_its_window(tmp_path: Path, width: int) -> None:
    from tests.support.browser import open_browser_page

    page = write_leaderboard(tmp_path, "mail", list(_write_reports(tmp_path)), SPEC, get_kind(_TASK))
    with open_browser_page(width, 800) as browser:
        browser.goto(page.as_uri())
        assert browser.evaluate("document.documentElement.scrollWidth") == width


def test_the_best_student_is_compared_with_the_others_on_the_same_items() -> None:
    right = {"large": marks(180, 20), "small": marks(177, 23), "weak": marks(100, 100)}
    tables = {name: patterns({"teacher": "1" * 200, "distilled": pattern}) for name, pattern in right.items()}
    found = compare_students(tables, "large", SPEC, get_kind(_TASK))
    assert [(c.first, c.second, c.n, c.only_first, c.only_second) for c in found] == [
        ("large", "small", 200, 3, 0),
        ("large", "weak", 200, 80, 0),
    ]
    said = describe_best_student(found, SPEC.confidence)
    assert said.startswith("Of the students large scores highest; small is not clearly behind (+1.5 [")
    assert "weak is clearly behind (+40.0 [" in said
    assert describe_best_student([], SPEC.confidence) == ""


def test_items_whose_reference_changed_between_two_reports_are_not_compared() -> None:
    tables = {name: patterns({"distilled": "1" * 20}) for name in ("large", "small")}
    first = pl.col("item_id") == "g0000"
    changed = pl.when(first).then(pl.lit('"card"')).otherwise("reference").alias("reference")
    tables["small"] = tables["small"].with_columns(changed, (pl.col("correct") & ~first).alias("correct"))
    (found,) = compare_students(tables, "large", SPEC, get_kind(_TASK))
    assert found.n == 19
