"""Figures of kinds without labels, computed by the kind's own score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from distill_dagster.evaluation.formatting import build_summary_rows
from distill_dagster.evaluation.metrics import PERMUTATION, Metrics, build_metrics_frame, compute_metrics
from distill_dagster.evaluation.metrics_json import build_metrics_json
from distill_dagster.evaluation.metrics_table import check_metrics_table
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs, write_report
from distill_dagster.evaluation.statistics import compute_permutation_p_value
from distill_dagster.kinds import Kind, get_kind
from tests.evaluation.build import SPEC, row, table
from tests.support.kinds import build_task

MATH, TEXT = get_kind(build_task("math")), get_kind(build_task("summarization"))
REFERENCE = "the old house is red"
CLOSE, FAR = "the old house was red", "nothing of it"


def answered(kind: Kind, system: str, item: str, reference: Any, answer: Any, **more: Any) -> dict[str, Any]:
    correct = answer is not None and kind.are_equal(answer, reference)
    found = row(system, item, "", None, **more)
    values = {"reference": json.dumps(reference), "answer": None if answer is None else json.dumps(answer)}
    return found | values | {"correct": correct, "confidence": None}


def measured(kind: Kind, answers: dict[str, list[Any]], reference: Any) -> Metrics:
    rows = [
        answered(kind, system, f"g{i:03d}", reference, answer)
        for system, given in answers.items()
        for i, answer in enumerate(given)
    ]
    return compute_metrics(table(rows), {}, [], SPEC, kind)


def test_numbers_are_right_or_wrong_within_the_tolerance() -> None:
    third = 1 / 3
    found = measured(MATH, {"distilled": [0.33333333, 0.3, None, third], "teacher": [third, third, 1, 2]}, third)
    distilled = found.golden.systems["distilled"]
    assert (found.metric, found.second_metric) == ("accuracy", None)
    assert distilled.score.value == 0.5
    assert distilled.second_score.value is None
    assert (distilled.per_label, distilled.confusion, found.labels) == ((), (), ())
    pair = found.golden.comparisons["distilled", "teacher"]
    assert (pair.only_first, pair.only_second, pair.test) == (1, 1, "McNemar")


def test_texts_score_their_similarity() -> None:
    found = measured(TEXT, {"distilled": [CLOSE] * 8, "base": [FAR] * 8, "teacher": [REFERENCE] * 8}, REFERENCE)
    assert (found.metric, found.second_metric) == ("rouge_l", "token_f1")
    distilled = found.golden.systems["distilled"]
    assert distilled.score.value == pytest.approx(0.8)
    assert distilled.second_score.value == pytest.approx(0.75)
    pair = found.golden.comparisons["distilled", "base"]
    assert (pair.only_first, pair.only_second, pair.test) == (8, 0, PERMUTATION)
    assert pair.difference.value == pytest.approx(0.8)
    assert pair.p_value == pytest.approx(2 / 2**8, abs=0.004), "all of eight signs alike"
    assert found.golden.retention.value == pytest.approx(0.8)
    assert recommend(found).worth_it is True
    assert "of the teacher's ROUGE-L" in recommend(found).text


def test_the_permutation_test_counts_all_signs() -> None:
    import numpy as np

    assert compute_permutation_p_value(np.zeros(5, np.float32), 0) == 1
    found = compute_permutation_p_value(np.array([0.5, 0.5, 0.5, -0.1], np.float32), 0, samples=40_000)
    assert found == pytest.approx(4 / 16, abs=0.01), "sums of 1.4 and 1.6, of either sign"


@pytest.mark.parametrize("kind", [MATH, TEXT], ids=["math", "summarization"])
def test_the_report_names_the_figures_of_the_kind(tmp_path: Path, kind: Kind) -> None:
    answers: dict[str, list[Any]] = {"distilled": [7, 8], "base": [7, 9], "teacher": [7, 7]}
    reference: Any = 7
    if kind is TEXT:
        answers, reference = {"distilled": [CLOSE, FAR], "base": [FAR, FAR], "teacher": [REFERENCE, CLOSE]}, REFERENCE
    metrics = measured(kind, answers, reference)
    rows = [
        answered(kind, system, f"g{i:03d}", reference, answer)
        for system, given in answers.items()
        for i, answer in enumerate(given)
    ]
    inputs = ReportInputs("t", "s", "v", "h", "now", {"g000": "<script>alert(1)</script>"})
    write_report(tmp_path, table(rows), metrics, recommend(metrics), inputs)
    html = (tmp_path / "report.html").read_text()
    assert html.count("<script") == 1
    assert ("ROUGE-L" in html) == (kind is TEXT)
    for absent in ("By label", "Macro-F1", "confusion", "centroid"):
        assert absent not in html
    figures = build_metrics_json(metrics, recommend(metrics), inputs)
    assert figures["systems"]["distilled"]["metric"] == kind.metric
    assert ("token_f1" in figures["systems"]["distilled"]) == (kind is TEXT)
    assert figures["splits"]["golden"]["systems"]["base"][kind.metric] == figures["systems"]["base"]["score"]
    base = figures["splits"]["golden"]["systems"]["base"]
    assert (base["metric"], base["score"]) == (kind.metric, figures["systems"]["base"]["score"])
    assert figures["per_slice"]["base"]["mail"]["score"] == pytest.approx(base["score"]["value"])
    assert check_metrics_table(build_metrics_frame(metrics)) is None
    assert kind.metric in build_summary_rows(metrics)[0]
    again = compute_metrics(pl.read_parquet(tmp_path / "predictions.parquet"), {}, [], SPEC, kind)
    assert replace(again, facts={}) == replace(metrics, facts={}), "every figure follows from the table"


def test_a_table_that_contradicts_itself() -> None:
    wrong = answered(MATH, "distilled", "a", 7, 7.0) | {"correct": False}
    with pytest.raises(ValueError, match="the kind's equality"):
        compute_metrics(table([wrong]), {}, [], SPEC, MATH)
