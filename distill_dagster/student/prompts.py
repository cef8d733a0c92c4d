"""The prompt of a causal student: one template, used in training and in prediction.

    Ticket: My app closes when I open a photo.
    Category: crash<end of text>

No instructions and no examples: a student learns the task from its rows, and every token costs latency. The text is
cut where prompt and answer would be longer than allowed, never the template.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_dagster.student.types import TaskSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABEL_CUE = "\nCategory:"


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    settings: TaskSettings,
    max_tokens: int,
    ask_for: str = LABEL_CUE,
) -> list[list[int]]:
    """Token ids of the prompts, each at most `max_tokens` long, ready for the answer to follow."""
    ask = _encode_text(tokenizer, ask_for)
    start = _get_start_token_ids(tokenizer)
    bodies = tokenizer([f"{settings.item}: {text.strip()}" for text in texts], add_special_tokens=False)["input_ids"]
    room = max(1, max_tokens - len(ask) - len(start))
    return [start + body[:room] + ask for body in bodies]


def encode_answer(tokenizer: PreTrainedTokenizerBase, label: str, ask_for: str = LABEL_CUE) -> list[int]:
    """Token ids of a label, or of any answer, as it stands behind the prompt, without the end of text.

    Cut from the tokens of the whole phrase: some tokenizers write a word differently at the beginning of a text.
    """
    ask, both = _encode_text(tokenizer, ask_for), _encode_text(tokenizer, f"{ask_for} {label}")
    return both[len(ask) :] if both[: len(ask)] == ask else _encode_text(tokenizer, f" {label}")


def get_end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that ends an answer."""
    value = tokenizer.eos_token_id
    return int(value if value is not None else tokenizer.pad_token_id)


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _get_start_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token, for tokenizers that put one."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []
