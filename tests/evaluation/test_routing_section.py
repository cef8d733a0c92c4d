"""The report shows the risk-coverage curve, and golden at the threshold that dev chose."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl

from distill_dagster.config import RoutingSpec
from distill_dagster.evaluation.metrics import compute_metrics
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import METRICS_FILE, REPORT_FILE, ReportInputs, write_report
from distill_dagster.evaluation.risk_coverage import RoutingRows, measure_router
from distill_dagster.release.routing.summary import summarize_routing
from tests.evaluation.build import LABELS, SPEC, row, table


def make_predictions() -> pl.DataFrame:
    """400 dev items and 40 golden ones. The student is unsure and wrong on a quarter."""
    rows = []
    for split, items in (("golden", 40), ("dev", 400)):
        for i in range(items):
            reference, sure = LABELS[i % 3], i % 4 > 0
            rows.append(row("teacher", f"{split}{i}", reference, reference, split))
            answer = reference if sure else LABELS[(i + 1) % 3]
            rows.append(row("distilled", f"{split}{i}", reference, answer, split, confidence=0.9 if sure else 0.4))
    return table(rows)


def test_the_report_shows_routers_and_every_figure_recomputes_from_the_predictions(tmp_path: Path) -> None:
    predictions = make_predictions()
    summary = summarize_routing(RoutingSpec(), predictions)
    assert summary is not None
    metrics = compute_metrics(predictions, {}, LABELS, SPEC)
    inputs = ReportInputs("mail", "small", "d" * 64, "5" * 64, "2026-01-02T03:04:05+00:00", texts={}, routing=summary)
    write_report(tmp_path, predictions, metrics, recommend(metrics), inputs)
    html = (tmp_path / REPORT_FILE).read_text()
    assert "Student first, teacher when unsure" in html
    assert "at most 1 point of accuracy is lost" in html
    assert "with the threshold" in html
    stored = json.loads((tmp_path / METRICS_FILE).read_text())["routing"]
    golden = RoutingRows.from_predictions(predictions, "golden")
    again = measure_router(golden, stored["threshold"])
    assert (stored["chosen"]["golden"]["coverage"], stored["chosen"]["golden"]["accuracy"]) == (0.75, 1.0)
    assert (again.coverage, again.accuracy, again.harm) == (0.75, 1.0, 0.0)
    assert [point["coverage"] for point in stored["curves"]["golden"]] == [0.0, 0.75, 1.0]


def test_a_report_without_confidences_has_no_such_section(tmp_path: Path) -> None:
    predictions = make_predictions().with_columns(confidence=pl.lit(None, dtype=pl.Float64))
    metrics = compute_metrics(predictions, {}, LABELS, SPEC)
    summary = summarize_routing(RoutingSpec(), predictions)
    inputs = ReportInputs("mail", "small", "d" * 64, "5" * 64, "2026-01-02T03:04:05+00:00", texts={}, routing=summary)
    write_report(tmp_path, predictions, metrics, recommend(metrics), inputs)
    assert "Student first" not in (tmp_path / REPORT_FILE).read_text()
    assert json.loads((tmp_path / METRICS_FILE).read_text())["routing"] is None
