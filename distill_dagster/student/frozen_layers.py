"""Run the frozen lower layers of a model once per text, and reuse their outputs in every epoch.

If only the upper layers have an adapter, the layers below give the same output in every epoch. Training then computes
them once and keeps their hidden states, as AutoFreeze does (Liu, Agarwal and Venkataraman 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MAX_STATE_BYTES = 2 * 2**30
"""The most memory that kept hidden states may take. A larger training computes all layers in every step."""


class _LayerReachedError(Exception):
    """Ends a forward pass early."""


def find_layers(model: Any) -> list[tuple[str, Any]]:
    """The transformer layers of a model with their names, from the bottom to the top.

    Empty if the model has not exactly one list of as many layers as its config says.
    """
    import torch

    count = getattr(model.config.get_text_config(), "num_hidden_layers", 0)
    found = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.ModuleList) and len(m) == count > 0]
    if len(found) != 1:
        return []
    name, layers = found[0]
    return [(f"{name}.{number}", layer) for number, layer in enumerate(layers)]


class FrozenLayers:
    """The layers below the lowest trained weight, and the hidden states that they gave for texts."""

    def __init__(self, model: Any) -> None:
        """Find the frozen layers of a model. There are none if weights outside the layers are trained."""
        self.layers: list[Any] = []
        self._states: dict[tuple[int, ...], torch.Tensor] = {}
        layers = [layer for _, layer in find_layers(model)]
        inside = {id(p) for layer in layers for p in layer.parameters()}
        if any(p.requires_grad and id(p) not in inside for p in model.parameters()):
            return
        for layer in layers:
            if any(p.requires_grad for p in layer.parameters()):
                return
            self.layers.append(layer)
        self.layers = []  # nothing is trained

    def compute_states(self, forward: Callable[[], Any]) -> torch.Tensor:
        """Run a forward pass as far as the highest frozen layer, and return the output of that layer.

        Raises:
            TypeError: the layer's output is not one tensor.
        """
        outputs: list[Any] = []

        def stop(module: Any, inputs: Any, output: Any) -> None:
            outputs.append(output)
            raise _LayerReachedError

        hook = self.layers[-1].register_forward_hook(stop)
        try:
            forward()
        except _LayerReachedError:
            pass
        finally:
            hook.remove()
        [states] = outputs
        if not hasattr(states, "shape"):
            raise TypeError(f"a layer returned {type(states).__name__}, not one tensor")
        return states

    def add_states(self, sequences: Sequence[Sequence[int]], states: torch.Tensor) -> None:
        """Keep the states of token sequences, shape (sequences, width, dimensions), padded on the left."""
        for ids, one in zip(sequences, states, strict=True):
            self._states[tuple(ids)] = one[-len(ids) :].to("cpu", copy=True)

    def find_states(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor | None:
        """The states of token sequences, padded on the left with zeros. None if one of them is not known."""
        found = [self._states[tuple(ids)] for ids in sequences if tuple(ids) in self._states]
        if not found or len(found) < len(sequences):
            return None
        padded = found[0].new_zeros(len(found), max(map(len, found)), found[0].shape[1])
        for row, one in zip(padded, found, strict=True):
            row[-len(one) :] = one
        return padded

    def clear(self) -> None:
        """Forget all states."""
        self._states.clear()

    @contextmanager
    def skip(self, states: torch.Tensor) -> Iterator[None]:
        """Let no frozen layer compute within the block. The layer above them gets `states`."""

        def forward(*_: Any, **__: Any) -> torch.Tensor:
            return states

        before = [layer.__dict__.get("forward") for layer in self.layers]
        for layer in self.layers:
            layer.forward = forward
        try:
            yield
        finally:
            for layer, own in zip(self.layers, before, strict=True):
                if own is None:
                    del layer.forward
                else:
                    layer.forward = own
