"""The report's summary of routing: chosen on dev, shown on golden, and a reason where there is no threshold."""

from __future__ import annotations

import json
import sys

import polars as pl
import pytest

from distill_dagster.config import RoutingSpec
from distill_dagster.release.routing.summary import summarize_routing


def make_predictions(dev: int, golden: int = 40, confidence: float | None = 0.9) -> pl.DataFrame:
    """The student is right where it is sure; every fourth answer is unsure and wrong. The teacher is always right."""
    rows = []
    for split, n in (("dev", dev), ("golden", golden)):
        for item in range(n):
            sure = item % 4 > 0
            stated = None if confidence is None else confidence if sure else confidence / 2
            rows.append(("distilled", split, str(item), stated, sure))
            rows.append(("teacher", split, str(item), None, True))
    return pl.DataFrame(rows, schema=["system", "split", "item_id", "confidence", "correct"], orient="row")


def test_dev_chooses_and_golden_shows() -> None:
    summary = summarize_routing(RoutingSpec(), make_predictions(dev=400))
    assert summary is not None
    assert summary.threshold is not None
    assert 0.45 < summary.threshold <= 0.9
    assert (summary.chosen["golden"].coverage, summary.chosen["golden"].accuracy) == (0.75, 1.0)
    assert [name for name, _ in summary.list_rows("golden")] == ["teacher alone", "with the threshold", "student alone"]
    assert summary.list_points()["golden"] == [(0.0, 1.0), (0.75, 1.0), (1.0, 0.75)]
    stored = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert [point["threshold"] for point in stored["curves"]["golden"]] == [None, 0.9, 0.45]


def test_golden_that_contradicts_dev_is_said() -> None:
    worse = pl.col("split") == "golden", pl.col("system") == "distilled"
    predictions = make_predictions(dev=400).with_columns(
        correct=pl.when(*worse).then(pl.lit(False)).otherwise(pl.col("correct"))
    )
    summary = summarize_routing(RoutingSpec(), predictions)
    assert summary is not None
    assert "Golden contradicts: there the student harms 75.0% of the requests" in summary.sentence


def test_one_harm_in_a_small_golden_is_chance() -> None:
    golden = pl.col("split") == "golden", pl.col("system") == "distilled", pl.col("item_id") == "1"
    predictions = make_predictions(dev=400).with_columns(
        correct=pl.when(*golden).then(pl.lit(False)).otherwise(pl.col("correct"))
    )
    summary = summarize_routing(RoutingSpec(), predictions)
    assert summary is not None
    assert summary.chosen["golden"].harm == 1 / 40 > RoutingSpec().margin
    assert "contradicts" not in summary.sentence


def test_a_small_dev_gives_the_curve_and_the_number_of_rows_it_takes() -> None:
    summary = summarize_routing(RoutingSpec(), make_predictions(dev=96))
    assert summary is not None
    assert (summary.threshold, summary.chosen) == (None, {})
    assert "at least 299" in summary.sentence
    assert len(summary.list_rows("golden")) == 2


def test_a_fixed_threshold_is_measured_and_said() -> None:
    summary = summarize_routing(RoutingSpec(threshold=0.0), make_predictions(dev=96))
    assert summary is not None
    assert summary.chosen["golden"].coverage == 1.0
    assert "nothing is promised" in summary.sentence


def test_without_confidences_there_is_nothing_to_say() -> None:
    assert summarize_routing(RoutingSpec(), make_predictions(dev=400, confidence=None)) is None


def test_without_the_extra_the_sentence_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mapie", None)
    monkeypatch.setitem(sys.modules, "mapie.risk_control", None)
    summary = summarize_routing(RoutingSpec(), make_predictions(dev=400))
    assert summary is not None
    assert summary.threshold is None
    assert "Install the extra `release`" in summary.sentence
