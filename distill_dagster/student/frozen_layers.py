"""Run the frozen lower layers of a model once per text, and reuse their outputs in every epoch.

If only the upper layers have an adapter, the layers below give the same output in every epoch. Training then computes
them once and keeps their hidden states, as AutoFreeze does (Liu, Agarwal and Venkataraman 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from distill_dagster.student.training_mode import set_training

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

    def __init__(self, model: Any, padding: Literal["left", "right"] = "left") -> None:
        """Find the frozen layers of a model. There are none if weights outside the layers are trained.

        `padding` is the side on which batches are padded.
        """
        self.layers: list[Any] = []
        self.padding = padding
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
        """Keep the states of token sequences, shape (sequences, width, dimensions)."""
        for ids, one in zip(sequences, states, strict=True):
            self._states[tuple(ids)] = self._cut(one, len(ids)).to("cpu", copy=True)

    def find_states(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor | None:
        """The states of token sequences, padded with zeros. None if one of them is not known."""
        found = [self._states[tuple(ids)] for ids in sequences if tuple(ids) in self._states]
        if not found or len(found) < len(sequences):
            return None
        padded = found[0].new_zeros(len(found), max(map(len, found)), found[0].shape[1])
        for row, one in zip(padded, found, strict=True):
            self._cut(row, len(one)).copy_(one)
        return padded

    def _cut(self, states: torch.Tensor, length: int) -> torch.Tensor:
        """The states of real tokens, without padding."""
        return states[-length:] if self.padding == "left" else states[:length]

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


def compute_frozen_layers(
    model: Any,
    sequences: Iterable[Sequence[int]],
    pad: Callable[[list[tuple[int, ...]]], dict[str, torch.Tensor]],
    forward: Callable[..., Any],
    padding: Literal["left", "right"] = "left",
    batch_size: int = 32,
) -> FrozenLayers | None:
    """Run the layers below the trained weights once for these token sequences, and keep their outputs.

    Dropout is off in these runs.

    Args:
        pad: builds the inputs of a batch, with `attention_mask`, on any device.
        forward: runs the model on such inputs and returns an output with `last_hidden_state`.
        padding: the side on which `pad` pads.

    Returns:
        None if there are no frozen layers, if the outputs take more than `MAX_STATE_BYTES`, or if the model needs more
        of its lower layers than their last output. Then every step has to compute all layers.
    """
    import torch

    frozen = FrozenLayers(model, padding)
    unique = sorted({tuple(ids) for ids in sequences}, key=lambda ids: (len(ids), ids))
    size = model.config.get_text_config().hidden_size * model.dtype.itemsize * sum(map(len, unique))
    if not frozen.layers or size > MAX_STATE_BYTES:
        return None
    with set_training(model, False), torch.no_grad():
        for start in range(0, len(unique), batch_size):
            part = unique[start : start + batch_size]
            inputs = {name: value.to(model.device) for name, value in pad(part).items()}
            states = frozen.compute_states(partial(forward, **inputs))
            if start == 0 and not _is_equal_without(frozen, states, inputs, forward):
                return None
            frozen.add_states(part, states)
    return frozen


def _is_equal_without(
    frozen: FrozenLayers, states: torch.Tensor, inputs: dict[str, Any], forward: Callable[..., Any]
) -> bool:
    import torch

    whole = forward(**inputs).last_hidden_state
    with frozen.skip(states):
        upper = forward(**inputs).last_hidden_state
    real = inputs["attention_mask"].bool()
    return torch.allclose(whole[real], upper[real], rtol=1e-2, atol=1e-3)
