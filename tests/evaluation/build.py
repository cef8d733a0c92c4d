"""Small predictions tables whose figures can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping

import polars as pl

from distill_dagster.config import EvaluationSpec
from distill_dagster.evaluation.metrics import Metrics, compute_metrics
from distill_dagster.tables.schemas import PREDICTIONS, build_frame

LABELS = ("refund", "card", "other")
SPEC = EvaluationSpec(bootstrap_samples=500, seed=3)


def row(
    system: str, item: str, reference: str, answer: str | None, split: str = "golden", **more: object
) -> dict[str, object]:
    return {
        "system": system,
        "item_id": item,
        "split": split,
        "slice": "mail",
        "reference": json.dumps(reference),
        "answer": None if answer is None else json.dumps(answer),
        "confidence": 0.5,
        "correct": answer == reference,
        "latency_s": None,
        "raw_text": answer or "",
    } | more


def table(rows: list[dict[str, object]]) -> pl.DataFrame:
    return build_frame(rows, PREDICTIONS, ("system", "split", "item_id"))


def patterns(right: Mapping[str, str], seconds: Mapping[str, float] | None = None) -> pl.DataFrame:
    """For each system a text of 1 (right) and 0 (wrong), one character for each golden item."""
    rows = []
    for system, marks in right.items():
        for i, mark in enumerate(marks):
            reference = LABELS[i % 3]
            answer = reference if mark == "1" else LABELS[(i + 1) % 3]
            rows.append(row(system, f"g{i:04d}", reference, answer, latency_s=(seconds or {}).get(system)))
    return table(rows)


def measured(right: Mapping[str, str], seconds: Mapping[str, float] | None = None) -> Metrics:
    return compute_metrics(patterns(right, seconds), {}, LABELS, SPEC)


def marks(right: int, wrong: int, *, wrong_first: bool = False) -> str:
    return "0" * wrong + "1" * right if wrong_first else "1" * right + "0" * wrong
