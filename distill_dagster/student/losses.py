"""The distillation loss of Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (2015)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from distill_dagster.config.objective import Objective, TokenKdObjectiveSpec
    from distill_dagster.student.types import TrainRow


IGNORE_INDEX = -100
"""The target of positions that do not count in a cross-entropy."""


def get_soft_settings(objective: Objective) -> tuple[float, float]:
    """Weight of the teacher's probabilities of labels in the loss of a student, and their temperature."""
    if objective.kind == "soft_label" or objective.kind == "hidden_state" or objective.kind == "attention":
        return objective.weight, objective.temperature
    return 0.0, 1.0


def sum_parts(parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The loss of every row, shape (rows,), from its parts of the same shape."""
    import torch

    return torch.stack(list(parts.values())).sum(0)


def compute_top_k_loss(
    logits: torch.Tensor, tokens: torch.Tensor, log_probs: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 * KL(teacher || student) at each position, where all tokens but the teacher's `top_k` count as one.

    So it is 0 if student and teacher are equal, and at most the divergence over the whole vocabulary.

    Args:
        logits: of the student, shape (positions, vocabulary).
        tokens: the teacher's most probable tokens, shape (positions, top_k).
        log_probs: their log-probabilities at this temperature, shape (positions, top_k).
    """

    own = (logits.float() / temperature).log_softmax(-1).gather(-1, tokens)
    probs = log_probs.exp()
    rest, own_rest = (1 - part.sum(-1).clamp(max=1 - 1e-6) for part in (probs, own.exp()))
    divergence = (probs * (log_probs - own)).sum(-1) + rest * (rest.log() - own_rest.log())
    return temperature**2 * divergence


def collate_teacher(items: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """The teacher's log-probabilities of a batch, row after row; nothing if the items have none."""
    import torch

    names = ("teacher_tokens", "teacher_log_probs")
    return {name: torch.cat([item[name] for item in items]) for name in names if name in items[0]}


def compute_teacher_loss(
    objective: TokenKdObjectiveSpec, logits: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The weighted `compute_top_k_loss` of a batch of `collate_teacher`, shape (tokens,)."""
    tokens, log_probs = batch["teacher_tokens"], batch["teacher_log_probs"]
    return objective.weight * compute_top_k_loss(logits, tokens, log_probs, objective.temperature)


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


def has_probabilities(row: TrainRow) -> bool:
    """Whether a teacher gave more than one label a probability. One label with 1.0 says no more than the label."""
    return sum(prob > 0 for prob in row.soft.values()) > 1


def get_row_temperature(row: TrainRow, temperature: float) -> float:
    """The temperature of a row: 1 without probabilities, since a label alone cannot be softened.

    With T > 1 its cross-entropy would ask for logits that are T times as large.
    """
    return temperature if has_probabilities(row) else 1.0


def compute_soft_loss(logits: torch.Tensor, target: torch.Tensor, temperature: float | torch.Tensor) -> torch.Tensor:
    """T^2 * KL(target || softmax(logits / T)) for each row; T^2 keeps the size of the gradients.

    If the target is one-hot and T is 1, this is the cross-entropy. Rows of zeros (a branch that the teacher never
    reaches) give 0.

    Args:
        target: distributions that already have this temperature.
        temperature: of all rows, or one for each row, shape (rows,).
    """
    import torch

    by_row = torch.as_tensor(temperature, device=logits.device, dtype=torch.float32)
    log_q = (logits.float() / by_row.unsqueeze(-1)).log_softmax(-1)
    return by_row**2 * (torch.xlogy(target, target) - target * log_q).sum(-1)
