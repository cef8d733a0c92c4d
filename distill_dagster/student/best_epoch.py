"""Early stopping: keep the weights of the epoch with the lowest validation loss (Prechelt 1998)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.student.checkpoints import (
    BEST_FILE,
    list_trained_weights,
    read_weights,
    set_weights,
    write_weights,
)

if TYPE_CHECKING:
    import torch


class BestEpoch:
    """The trained weights of a model at its best epoch. They are copied, so that training can go on."""

    def __init__(self, model: Any, patience: int) -> None:
        """`patience` is the number of epochs without a lower loss after which training should stop."""
        self.model, self.patience = model, patience
        self.epoch: int | None = None
        self.loss = float("inf")
        self._lowest = (float("inf"), 0)
        self._weights: dict[str, torch.Tensor] = {}

    def add_epoch(self, epoch: int, loss: float) -> bool:
        """Note the validation loss of an epoch, counted from 1. Return whether training should stop.

        Epoch 0 is what training starts from: it can be the best, but training goes on while the other epochs improve.
        Of equal epochs the first is kept. A loss that is not a number never is the best.
        """
        if loss < self.loss:
            self.epoch, self.loss = epoch, loss
            self._weights = {name: p.detach().clone() for name, p in list_trained_weights(self.model).items()}
        if epoch > 0 and loss < self._lowest[0]:
            self._lowest = (loss, epoch)
        return epoch - self._lowest[1] >= self.patience

    def restore(self) -> None:
        """Put the weights of the best epoch back. Without one, the model stays as it is."""
        set_weights(self.model, self._weights)

    def save(self, checkpoint: Path) -> None:
        """Write the weights of the best epoch to a checkpoint, if there is one."""
        if self._weights:
            write_weights(checkpoint / BEST_FILE, self._weights)

    def load(self, checkpoint: Path, validation: list[dict[str, float]]) -> None:
        """Become what `save` was called on, after the epochs whose scores are in `validation`."""
        self._weights = {}
        for scores in validation:
            self.add_epoch(int(scores["epoch"]), scores["loss"])
        if self._weights:
            device = next(iter(self._weights.values())).device
            self._weights = {name: w.to(device) for name, w in read_weights(checkpoint / BEST_FILE).items()}
