"""Learning rates that fall from layer to layer, so that lower layers keep more of what they know.

Howard and Ruder 2018 call it discriminative fine-tuning. Import this module inside functions: it may load torch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from distill_dagster.core.errors import DistillError
from distill_dagster.student.frozen_layers import find_layers


def build_layer_groups(model: Any, trained: Iterable[Any], rate: float, decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, from the top to the bottom.

    What lies above the layers, such as a head, has the given rate. Each layer has `decay` times the rate above it. What
    lies below them, such as embeddings, counts as one more layer.

    Args:
        model: the transformer, with or without adapters.
        trained: the weights to train. Those that are not in the model have the given rate.

    Raises:
        DistillError: the layers of the model cannot be told apart.
    """
    layers = [layer for _, layer in find_layers(model)]
    if not layers:
        raise DistillError(
            f"`layer_decay` needs a model with one list of layers, and {type(model).__name__} has none. Leave it out."
        )
    place = {id(weight): number for number, layer in enumerate(layers) for weight in layer.parameters()}
    groups: dict[int, list[Any]] = {}
    depths: dict[int, int] = {}
    is_below = True
    for weight in model.parameters():  # in the order of the model: embeddings, layers, what is above them
        number = place.get(id(weight))
        is_below = is_below and number is None
        depths[id(weight)] = (len(layers) + 1 if is_below else 0) if number is None else len(layers) - number
    for weight in trained:
        groups.setdefault(depths.get(id(weight), 0), []).append(weight)
    return [{"params": groups[depth], "lr": rate * decay**depth} for depth in sorted(groups)]
