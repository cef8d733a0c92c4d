"""Write the answers of a batch, most probable token first, without waiting in it for the longest one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

FIRST_TOKENS = 4
"""Tokens after which rows that have ended leave the batch for the first time. Each time the number doubles."""


def write_greedily(
    model: Any, inputs: dict[str, torch.Tensor], most: int, stops: Sequence[int], pad: int, criteria: Any = None
) -> list[list[int]]:
    """Token ids that a causal model writes after each row, with the stop token if it wrote one.

    Rows that have ended leave the batch, with their keys and values: the others go on without them, as a long answer
    would otherwise cost as much as if all were long. Models whose cache cannot be cut write all rows to the end.

    Args:
        inputs: `input_ids` and `attention_mask`, padded on the left, on the model's device.
        most: tokens to write at most.
        stops: tokens that end an answer.
        pad: the token for what follows an end in the same batch.
        criteria: a `StoppingCriteriaList`. With it no row leaves the batch.
    """
    import torch
    from transformers import DynamicCache

    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    width, cache = ids.shape[1], DynamicCache(config=model.config)
    can_leave = criteria is None and len(ids) > 1 and _can_cut(cache)
    written: list[list[int]] = [[] for _ in ids]
    active = list(range(len(ids)))
    end = torch.tensor(list(stops), device=ids.device)
    step = FIRST_TOKENS if can_leave else most
    while active:
        done = ids.shape[1] - width
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache if can_leave else None,
            max_new_tokens=min(step, most - done),
            do_sample=False,
            pad_token_id=pad,
            eos_token_id=list(stops),
            stopping_criteria=criteria,
        )
        new = out[:, ids.shape[1] :]
        for row, tokens in zip(active, new.tolist(), strict=True):
            place = next((n + 1 for n, token in enumerate(tokens) if token in stops), len(tokens))
            written[row] += tokens[:place]
        if not can_leave or out.shape[1] - width >= most:
            break
        left = (~torch.isin(new, end).any(1)).nonzero()[:, 0]
        active = [active[row] for row in left.tolist()]
        if active and len(left) < len(out):
            cache.batch_select_indices(left)
        ids = out[left]
        mask = torch.cat([mask, mask.new_ones(new.shape)], dim=1)[left]
        step *= 2
    return written


def _can_cut(cache: Any) -> bool:
    """Whether rows can be taken out: a layer with a running state (linear attention) would keep that of all rows."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers)
