"""Make a shallower model from a deeper one by removing layers (Sanh et al. 2019, "DistilBERT")."""

from __future__ import annotations

from typing import Any

from distill_dagster.core.errors import DistillError
from distill_dagster.student.frozen_layers import find_layers


def choose_layers(total: int, kept: int) -> list[int]:
    """The layers to keep, counted from 0 at the input: the first, the last, and layers evenly between them.

    One layer alone is the last.
    """
    if kept == 1:
        return [total - 1]
    return [round(number * (total - 1) / (kept - 1)) for number in range(kept)]


def remove_layers(model: Any, kept: int) -> None:
    """Remove layers of a loaded model in place, so that `kept` of them stay. Its config says so too.

    Raises:
        DistillError: the model does not have more layers than that, or its layers cannot be found.
    """
    import torch

    layers = find_layers(model)
    if not layers:
        raise DistillError("The layers of this model cannot be counted. Leave out `shrink`.")
    if kept >= len(layers):
        raise DistillError(f"`shrink.layers` is {kept}, but the model has {len(layers)} layers. Set fewer.")
    chosen = choose_layers(len(layers), kept)
    parent, _, name = layers[0][0].removesuffix(".0").rpartition(".")
    setattr(model.get_submodule(parent), name, torch.nn.ModuleList([layers[number][1] for number in chosen]))
    config = model.config.get_text_config()
    for field in ("layer_types", "no_rope_layers"):  # settings of every layer
        values = getattr(config, field, None)
        if isinstance(values, list) and len(values) == len(layers):
            setattr(config, field, [values[number] for number in chosen])
    config.num_hidden_layers = kept
    for number, (_, layer) in enumerate(find_layers(model)):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # the place of the layer's keys and values in the cache
                module.layer_idx = number
