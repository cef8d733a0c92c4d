"""Prediction and validation for students that give every label a probability."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distill_dagster.student.types import Prediction, StudentPrompt, TrainRow

if TYPE_CHECKING:
    import torch


class LabelPredictions(ABC):
    """A student that gives every label a probability."""

    labels: list[str]

    @abstractmethod
    def compute_log_probs(self, asked: Sequence[StudentPrompt]) -> torch.Tensor:
        """Log-probabilities of the labels for a batch of prompts, shape (prompts, labels), on the CPU."""

    def predict_batch(self, asked: Sequence[StudentPrompt]) -> list[Prediction]:
        """Return one prediction per prompt, in order."""
        probs = self.compute_log_probs(asked).exp()
        return [build_label_prediction(self.labels, row) for row in probs.tolist()]

    def compute_validation_scores(self, rows: list[TrainRow], batch_size: int = 64) -> dict[str, float]:
        """Mean negative log-likelihood of the rows' labels, and the share of rows whose label is most probable."""
        loss, correct = 0.0, 0
        rows = sorted(rows, key=lambda row: len(row.prompt.text))
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            batch_log_probs = self.compute_log_probs([row.prompt for row in batch]).tolist()
            for row, log_probs in zip(batch, batch_log_probs, strict=True):
                log_prob = log_probs[self.labels.index(row.answer_label)]
                loss -= log_prob
                correct += log_prob == max(log_probs)
        return {"loss": round(loss / len(rows), 6), "agreement": round(correct / len(rows), 6)}

    def get_saved_settings(self) -> dict[str, Any]:
        """Settings that labels.json keeps for this architecture only."""
        return {}


def build_label_prediction(labels: list[str], weights: list[float]) -> Prediction:
    """The prediction of the label with the largest weight. Weights are normalized to probabilities."""
    total = sum(weights)
    probs = {label: weight / total for label, weight in zip(labels, weights, strict=True)}
    best = max(probs, key=probs.__getitem__)
    return Prediction(best, probs, best)
