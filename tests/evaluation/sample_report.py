"""A report of random answers of five systems."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from distill_dagster.evaluation.metrics import compute_metrics
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs, write_report
from tests.evaluation.build import LABELS, SPEC, row, table

EVIL = "<script>alert(1)</script>"
INPUTS = ReportInputs(
    task="mail",
    student="small",
    dataset_version="d" * 64,
    settings_hash="5" * 64,
    created_at="2026-01-02T03:04:05+00:00",
    texts={},
    dataset={"kept": {"train": 90, "validation": 10}, "dropped": {"duplicate": 4}},
    training={"training loss": [(1, 2.0), (2, 1.0)], "validation loss": [(2, 1.5)], "empty": []},
    golden_looks=[{"at": "2026-01-02T03:04:05+00:00", "settings_hash": "5" * 64}],
    latency_method="One by one.",
    cost_method="The machine costs `nothing`.",
    versions={"torch": "2"},
    notice="Teacher and student share their base.",
    extra={"run": "r1", "task": "never this"},
)
FACTS: dict[str, dict[str, Any]] = {
    "teacher": {"model": "big", "cost_usd_per_1k": 1.25},
    "distilled": {"model": "small", "parameters": 22_713_216, "bytes": 90_900_000, "peak_mb": 210.0},
}


def build_predictions(labels: tuple[str, ...] = LABELS) -> pl.DataFrame:
    rng = np.random.default_rng(4)
    rows = []
    chance = {"teacher": 0.9, "base": 0.4, "seed_only": 0.6, "distilled": 0.8, "centroid": 0.7}
    for split, items in (("golden", 60), ("dev", 20)):
        for i in range(items):
            reference = labels[i % len(labels)]
            for system, p in chance.items():
                wrong = labels[(i + 1) % len(labels)] if rng.random() < 0.8 else None
                answer = reference if rng.random() < p else wrong
                seconds = float(rng.gamma(3, 0.01)) if split == "golden" and i < 15 else None
                rows.append(row(system, f"{split}{i}", reference, answer, split, slice=f"s{i % 2}", latency_s=seconds))
    return table(rows)


def write_files(folder: Path, predictions: pl.DataFrame, inputs: ReportInputs, labels: tuple[str, ...] = LABELS) -> str:
    metrics = compute_metrics(predictions, FACTS, labels, SPEC)
    write_report(folder, predictions, metrics, recommend(metrics), inputs)
    return (folder / "report.html").read_text(encoding="utf-8")


def write_sample(folder: Path) -> Path:
    """Write the report with a text for each golden item."""
    texts = {f"golden{i}": f"text number {i}" for i in range(60)}
    write_files(folder, build_predictions(), replace(INPUTS, texts=texts))
    return folder
