"""Early stopping: keep the weights of the epoch with the lowest validation loss (Prechelt 1998)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
            self._weights = {name: p.detach().clone() for name, p in self._list_trained()}
        if epoch > 0 and loss < self._lowest[0]:
            self._lowest = (loss, epoch)
        return epoch - self._lowest[1] >= self.patience

    def restore(self) -> None:
        """Put the weights of the best epoch back. Without one, the model stays as it is."""
        import torch

        with torch.no_grad():
            for name, parameter in self._list_trained():
                if name in self._weights:
                    parameter.copy_(self._weights[name])

    def _list_trained(self) -> list[tuple[str, Any]]:
        return [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
