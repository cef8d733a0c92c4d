"""The dagster-pandas type of the metrics table: unknown figures pass, impossible ones do not."""

from __future__ import annotations

import pandas as pd
import pytest

from distill_dagster.evaluation.metrics_table import check_metrics_table

ROW = {
    "system": "teacher",
    "score": 0.6,
    "low": 0.5,
    "high": 0.7,
    "second_score": 0.58,
    "p50_ms": 285.0,
    "p95_ms": None,
    "parameters": None,
    "bytes": 1e6,
    "cost_usd_per_1k": None,
}


def test_unknown_figures_pass() -> None:
    assert check_metrics_table(pd.DataFrame([ROW, ROW | {"system": "base", "parameters": 135e6}])) is None


@pytest.mark.parametrize("wrong", [{"score": 1.5}, {"low": None}, {"p50_ms": -1.0}, {"cost_usd_per_1k": -0.1}])
def test_impossible_figures_do_not(wrong: dict[str, float | None]) -> None:
    problem = check_metrics_table(pd.DataFrame([ROW | {"system": "base"}, ROW | wrong]))
    assert problem is not None
    assert next(iter(wrong)) in problem


def test_a_system_has_one_row() -> None:
    assert check_metrics_table(pd.DataFrame([ROW, ROW])) is not None
