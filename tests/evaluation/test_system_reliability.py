"""How sure the systems are: measured from the predictions, and shown in the report."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from distill_dagster.core import plots
from distill_dagster.curation.soft_labels.reliability import Reliability
from distill_dagster.curation.soft_labels.temperature import SoftAnswer, fit_temperature
from distill_dagster.evaluation.metrics import compute_metrics
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs, write_report
from distill_dagster.evaluation.system_reliability import measure_system_reliability
from distill_dagster.kinds import get_kind
from tests.evaluation.build import LABELS, SPEC, row, table
from tests.support.kinds import build_task

INPUTS = ReportInputs("mail", "small", "d", "s", "2026-01-02T03:04:05+00:00", {})


def predictions() -> pl.DataFrame:
    """The teacher is right in 8 of 10 and says 0.95; the student is right in half and says 0.55; base says 1."""
    rows = []
    for split, items in (("golden", 40), ("dev", 20), ("validation", 10)):
        for i in range(items):
            reference, wrong = LABELS[i % 3], LABELS[(i + 1) % 3]
            answers = {"teacher": (i % 10 < 8, 0.95), "distilled": (i % 2 == 0, 0.55), "base": (i % 3 == 0, 1.0)}
            for system, (is_right, confidence) in answers.items():
                answer = reference if is_right else wrong
                rows.append(row(system, f"{split}{i}", reference, answer, split, confidence=confidence))
            rows.append(row("writer", f"{split}{i}", reference, reference, split, confidence=None))
    return table(rows)


def write(folder: Path, inputs: ReportInputs) -> str:
    metrics = compute_metrics(predictions(), {}, LABELS, SPEC)
    write_report(folder, predictions(), metrics, recommend(metrics), inputs)
    return re.sub(r"\s+", " ", (folder / "report.html").read_text(encoding="utf-8"))


def test_systems_that_state_confidences_are_measured_where_people_labelled() -> None:
    found = measure_system_reliability(predictions())
    assert list(found) == ["dev", "golden"]
    assert list(found["dev"]) == ["teacher", "distilled"], "base is always certain, and writer states nothing"
    assert found["dev"]["teacher"].ece == pytest.approx(0.15)
    assert found["golden"]["distilled"].ece == pytest.approx(0.05)
    assert measure_system_reliability(predictions().head(0)) == {}


def test_bins_of_equal_mass_and_brier_equal_scikit_learn() -> None:
    rng = np.random.default_rng(3)
    stated = np.round(rng.beta(5, 1, 250), 2)  # with ties
    right = rng.random(250) < stated**2
    rows = [
        row("distilled", f"g{i}", "card", "card" if hit else "other", confidence=float(p))
        for i, (p, hit) in enumerate(zip(stated, right, strict=True))
    ]
    found = measure_system_reliability(table(rows))["golden"]["distilled"]
    shares, means = calibration_curve(right, stated, n_bins=10, strategy="quantile")
    assert [one.right for one in found.bins] == pytest.approx(list(shares))
    assert [one.stated for one in found.bins] == pytest.approx(list(means))
    counts = np.array([one.rows for one in found.bins])
    assert found.ece == pytest.approx((counts * abs(shares - means)).sum() / 250)
    assert found.brier == pytest.approx(brier_score_loss(right, stated))
    assert counts.max() <= 40, "about as many rows in each bin"


def test_the_report_shows_calibration_and_the_figures_can_be_read_back(tmp_path: Path) -> None:
    measured = measure_system_reliability(predictions())
    html = write(tmp_path, replace(INPUTS, reliability=measured))
    part = html[html.index('<div id="calibration">') : html.index('<div id="training">')]
    assert '<a href="#calibration">' in html
    assert "0.150" in part
    assert "Right answers by confidence, on dev" in part
    assert re.search(
        r"teacher</th><td class=\"left\">0\.95 to 0\.95</td><td class=\"soft\">20</td> <td>0\.950</td><td>0\.800", part
    )
    assert part.count("data:image/png") == 1
    assert "rescale_soft_labels" not in part
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert Reliability.from_dict(figures["calibration"]["dev"]["teacher"]) == measured["dev"]["teacher"]


def test_a_report_without_confidences_has_no_such_part(tmp_path: Path) -> None:
    html = write(tmp_path, INPUTS)
    assert "#calibration" not in html
    assert json.loads((tmp_path / "metrics.json").read_text())["calibration"] == {}


def test_temperatures_and_rows_by_teacher_are_shown(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    soft = {"refund": 0.95, "card": 0.05}
    fit = fit_temperature([SoftAnswer(soft, "refund", "refund" if n % 2 else "card") for n in range(40)])
    counts = [{"teacher": evil, "train": 1200, "validation": 90, "rejected": 7}]
    inputs = replace(
        INPUTS,
        reliability=measure_system_reliability(predictions()),
        temperatures={evil: fit.to_dict()},
        teachers=counts,
    )
    html = write(tmp_path, inputs)
    assert evil not in html
    assert f"<td>{fit.temperature:.2f}</td><td>{fit.ece_before:.3f}</td>" in html
    assert "<td>1,200</td><td>90</td><td>7</td>" in html
    figures = json.loads((tmp_path / "metrics.json").read_text())
    assert figures["dataset_teachers"] == counts
    assert figures["temperatures"][evil]["rows"] == 40


def test_the_diagram_is_the_same_each_time() -> None:
    points = {"teacher": [(0.95, 0.8, 0.6, 0.9)], "student $x": [(0.3, 0.3, 0.1, 0.5), (0.8, 0.7, 0.6, 0.8)]}
    png = plots.plot_reliability(points, "")
    assert png.startswith(b"\x89PNG")
    assert png == plots.plot_reliability(points, "")


def test_how_similar_free_texts_are_is_not_how_sure_a_system_is() -> None:
    """The confidence of a written text is its similarity to the other samples; hardly any text equals its reference."""
    rows = [row("teacher", f"g{i}", "the fare was refunded", "a fare refunded", confidence=0.7) for i in range(20)]
    assert measure_system_reliability(table(rows))["golden"]["teacher"].right == 0
    assert measure_system_reliability(table(rows), get_kind(build_task("summarization"))) == {}
    assert measure_system_reliability(table(rows), get_kind(build_task("extraction"))) != {}
