"""The prompt of a causal student: one template, used in training and in prediction.

    Ticket: My app closes when I open a photo.
    Category: crash<end of text>

The prompt has no instructions and no examples. A student learns the task from its rows, and every token costs latency.
If the prompt is too long, the text is cut, never the template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_dagster.student.types import StudentPrompt, TaskSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LABEL_CUE = "\nCategory:"
"""The end of a prompt that asks for a label."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[StudentPrompt],
    settings: TaskSettings,
    max_tokens: int,
    cue: str = LABEL_CUE,
) -> list[list[int]]:
    """Token ids of the prompts, each at most `max_tokens` long. The answer follows directly."""
    cue_ids = _encode_text(tokenizer, cue)
    start = _get_start_token_ids(tokenizer)
    bodies = tokenizer([f"{settings.item}: {prompt.text.strip()}" for prompt in asked], add_special_tokens=False)[
        "input_ids"
    ]
    room = max(1, max_tokens - len(cue_ids) - len(start))
    return [start + body[:room] + cue_ids for body in bodies]


def encode_answer(tokenizer: PreTrainedTokenizerBase, answer: str, cue: str = LABEL_CUE) -> list[int]:
    """Token ids of a label or any other answer after the prompt, without the end token.

    They are cut from the tokens of cue and answer together, since some tokenizers encode the first word differently.
    """
    cue_ids, both = _encode_text(tokenizer, cue), _encode_text(tokenizer, f"{cue} {answer}")
    return both[len(cue_ids) :] if both[: len(cue_ids)] == cue_ids else _encode_text(tokenizer, f" {answer}")


def get_end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of the token that ends an answer."""
    value = tokenizer.eos_token_id
    return int(value if value is not None else tokenizer.pad_token_id)


def _encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _get_start_token_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token, for tokenizers that add one."""
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer("a")["input_ids"][:1] == [bos] else []
