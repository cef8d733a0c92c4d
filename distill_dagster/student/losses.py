"""The distillation loss of Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from distill_dagster.config.objective import Objective
    from distill_dagster.student.types import TrainRow


IGNORE_INDEX = -100
"""The target of positions that do not count in a cross-entropy."""


def get_soft_settings(objective: Objective) -> tuple[float, float]:
    """Weight of the teacher's probabilities in the loss of a student that chooses labels, and their temperature."""
    return (objective.weight, objective.temperature) if objective.kind == "soft_label" else (0.0, 1.0)


def sum_parts(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The loss of every row, shape (rows,), from its parts of the same shape."""
    import torch

    return torch.stack(list(parts.values())).sum(0)


def average_by_row(values: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """The mean of the values of each row, shape (count,). `rows` has the row of each value."""
    import torch

    total = torch.zeros(count, device=values.device, dtype=values.dtype).index_add(0, rows, values)
    return total / torch.bincount(rows, minlength=count)


def build_soft_targets(rows: Sequence[TrainRow], labels: list[str], temperature: float) -> torch.Tensor:
    """The teacher's distributions at a temperature, shape (rows, labels). A row without one is one-hot on its answer.

    A teacher gives probabilities p, not logits. Normalized p^(1/T) equals its softmax at temperature T.

    Raises:
        ValueError: a row names a label that is not one of `labels`, or its probabilities are negative or all zero.
    """
    import torch

    index = {label: i for i, label in enumerate(labels)}
    probs = torch.zeros(len(rows), len(labels), dtype=torch.float64)
    for r, row in enumerate(rows):
        for label, prob in (row.soft or {row.answer_label: 1.0}).items():
            if label not in index:
                raise ValueError(f"row {row.prompt_id}: {label!r} is not one of the labels")
            probs[r, index[label]] = prob
    if bool((probs < 0).any()) or bool((probs.sum(1) <= 0).any()):
        raise ValueError("soft labels must be probabilities: none negative, not all zero")
    probs = (probs / probs.sum(1, keepdim=True)) ** (1 / temperature)
    return (probs / probs.sum(1, keepdim=True)).float()


def compute_soft_loss(logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
    """T^2 * KL(target || softmax(logits / T)) for each row; T^2 keeps the size of the gradients.

    `target` already has this temperature. If it is one-hot and T is 1, this is the cross-entropy. Rows of zeros (a
    branch that the teacher never reaches) give 0.
    """
    import torch

    log_q = (logits.float() / temperature).log_softmax(-1)
    return temperature**2 * (torch.xlogy(target, target) - target * log_q).sum(-1)
