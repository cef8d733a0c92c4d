"""Win rates from both orders, worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from statsmodels.stats.proportion import proportion_confint

from distill_dagster.evaluation.metrics import WinRate, compute_metrics, compute_win_rate
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs, write_report
from distill_dagster.tables.schemas import JUDGED_PAIRS, build_frame
from tests.evaluation.build import LABELS, SPEC, patterns

OWN, OTHER = "distilled", "teacher"
INPUTS = ReportInputs("mail", "small", "d", "s", "2026-01-02T03:04:05+00:00", {})


def build_pairs(choices: Sequence[tuple[str | None, str | None]], decided_by: str = "judge") -> pl.DataFrame:
    """For each item the winner if the student's answer is shown first, and if the teacher's is."""
    rows = []
    for i, winners in enumerate(choices):
        for shown, winner in zip((OWN, OTHER), winners, strict=True):
            row = dict.fromkeys(JUDGED_PAIRS) | {"item_id": f"{decided_by}{i:03d}", "shown_first": shown}
            row |= {"first": OWN, "second": OTHER, "winner": winner, "decided_by": decided_by}
            rows.append(row | {"judge": "openai/judge" if decided_by == "judge" else None})
    return build_frame(rows, JUDGED_PAIRS, ("item_id", "shown_first"))


def compute_mixed() -> WinRate:
    judged = build_pairs([(OWN, OWN)] * 5 + [(OTHER, OTHER)] * 2 + [(OWN, OTHER)] * 3 + [(OTHER, OWN)] + [(OWN, None)])
    equal, missing = build_pairs([(None, None)] * 2, "equal"), build_pairs([(OTHER, OTHER)], "missing")
    return compute_win_rate(pl.concat([judged, equal, missing]), SPEC)


def test_only_a_choice_that_survives_the_swap_counts() -> None:
    found = compute_mixed()
    assert (found.wins, found.ties, found.losses, found.items, found.left_out) == (5, 6, 3, 14, 1)
    assert found.rate.value == pytest.approx((5 + 6 / 2) / 14)
    assert found.asked == 11
    assert found.flip_rate == pytest.approx(4 / 11)
    # Shown first and chosen: once for each item with a firm choice, twice for (own, other), never for (other, own).
    assert found.first_slot_rate == pytest.approx((7 + 2 * 3) / 22)
    assert found.p_value == pytest.approx(0.7265625), "exact sign test of 5 against 3"
    assert found.judge == "openai/judge"


def test_items_are_resampled_and_not_single_results() -> None:
    """Two orders of an item are one observation: asking twice must not make the interval narrower."""
    half = compute_win_rate(build_pairs([(OWN, OWN)] * 20 + [(OTHER, OTHER)] * 20), SPEC).rate
    assert half.low is not None
    assert half.high is not None
    assert half.high - half.low == pytest.approx(2 * 1.96 * (0.25 / 40) ** 0.5, abs=0.04)


@pytest.mark.parametrize("winner", [OWN, OTHER])
def test_a_judge_that_always_prefers_one_system_gets_a_wilson_interval(winner: str) -> None:
    found = compute_win_rate(build_pairs([(winner, winner)] * 12), SPEC)
    bounds = proportion_confint(12 * (winner == OWN), 12, method="wilson")
    assert (found.rate.low, found.rate.high) == pytest.approx(bounds)
    assert found.first_slot_rate == 0.5


def test_a_judge_that_only_looks_at_the_place_finds_nothing() -> None:
    found = compute_win_rate(build_pairs([(OWN, OTHER)] * 30), SPEC)
    assert (found.rate.value, found.flip_rate, found.first_slot_rate, found.p_value) == (0.5, 1.0, 1.0, 1.0)
    assert found.rate.low is not None
    assert 0.4 < found.rate.low < 0.5


def test_without_items_nothing_is_known() -> None:
    found = compute_win_rate(build_pairs([]), SPEC)
    assert (found.items, found.rate.value, found.flip_rate, found.first_slot_rate) == (0, None, None, None)
    with pytest.raises(ValueError, match="one row for each order"):
        compute_win_rate(build_pairs([(OWN, OWN)]).head(1), SPEC)


def test_the_report_shows_the_win_rate(tmp_path: Path) -> None:
    predictions = patterns({OWN: "1101", OTHER: "1111"})
    metrics = compute_metrics(predictions, {OTHER: {"model": "openai/judge"}}, LABELS, SPEC)
    write_report(tmp_path, predictions, metrics, recommend(metrics), INPUTS)
    assert 'id="win_rate"' not in (tmp_path / "report.html").read_text()
    assert "the judge prefers" not in (tmp_path / "report.md").read_text()
    metrics = replace(metrics, win_rate=compute_mixed())
    write_report(tmp_path, predictions, metrics, recommend(metrics), INPUTS)
    html = (tmp_path / "report.html").read_text()
    part = html[html.index('<div id="win_rate">') :]
    assert "<td>5</td><td>6</td><td>3</td>" in part
    assert "in 36 %" in part
    assert "the judge is the teacher's model" in part
    two = compute_metrics(predictions, {OTHER: {"model": "openai/cheap, openai/judge"}}, LABELS, SPEC)
    write_report(tmp_path, predictions, replace(two, win_rate=compute_mixed()), recommend(metrics), INPUTS)
    assert "the judge is the teacher's model" in (tmp_path / "report.html").read_text()
    assert "(5 wins, 6 ties, 3 losses; p 0.727)" in (tmp_path / "report.md").read_text()
    figures = json.loads((tmp_path / "metrics.json").read_text())["win_rate"]
    assert figures == json.loads(json.dumps(compute_mixed().to_dict()))
