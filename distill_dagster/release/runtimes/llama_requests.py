"""Requests to llama.cpp's `/completion`, and what its replies say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class WrittenTokens:
    """What the server wrote: tokens, and for each the log-probabilities of the most probable tokens there."""

    tokens: list[int]
    top: list[dict[int, float]]
    is_cut: bool


def build_writing_body(prompt: list[Any], most: int, top: int, cache: bool) -> dict[str, Any]:
    """A request that continues the tokens of a prompt, or of several, with the most probable token each time.

    Args:
        most: the most new tokens.
        top: for how many tokens at each place log-probabilities are returned.
        cache: whether the start of a prompt may be read from the slot's cache.
    """
    return {
        "prompt": prompt,
        "n_predict": most,
        "temperature": 0,
        "n_probs": top,
        "return_tokens": True,
        "cache_prompt": cache,
    }


def sort_replies(replies: Any) -> list[dict[str, Any]]:
    """The replies in the order of the prompts. A single one is not in a list."""
    return sorted(replies if isinstance(replies, list) else [replies], key=lambda reply: int(reply["index"]))


def read_top(reply: dict[str, Any]) -> list[dict[int, float]]:
    """For every written token the log-probabilities of the most probable tokens there."""
    return [
        {entry["id"]: entry["logprob"] for entry in place["top_logprobs"]}
        for place in reply.get("completion_probabilities") or []
    ]
