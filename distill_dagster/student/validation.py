"""Measure a student on rows that it does not learn from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_dagster.student.training_mode import set_training
from distill_dagster.student.types import TrainRow

if TYPE_CHECKING:
    from distill_dagster.student.train import Student


def compute_validation_scores(student: Student, rows: list[TrainRow]) -> dict[str, float]:
    """Means over the rows, without dropout: `loss` in nats and, for labels, `agreement` with the rows' labels."""
    with set_training(student.trained_module, False):
        return student.compute_validation_scores(rows)
