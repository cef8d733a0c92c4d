"""The prompts that a teacher is asked, read from a prompts table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from distill_dagster.kinds import Question, is_refusal
from distill_dagster.kinds.refusals import REFUSAL_KEY
from distill_dagster.tables.messages import Message, get_user_text, user_text_expr

MAX_QUOTED_CHARS = 60
_REFUSAL_PREFIX = f'{{"{REFUSAL_KEY}":'
"""The first characters of the canonical JSON of a refusal."""


class AskedPrompt(NamedTuple):
    """One prompt to ask: its text, and the turns of a conversation."""

    text: str
    """The user's text; of a conversation all user turns."""
    messages: tuple[Message, ...] = ()
    """The turns of a conversation. Empty if the prompt is one text."""
    refusal_wanted: bool = False
    """The reference says that only a refusal is a right answer."""

    @property
    def quoted(self) -> str:
        """The beginning of the text in quotation marks, to name the prompt in a message."""
        words = " ".join(self.text.split())
        return f'"{words}"' if len(words) <= MAX_QUOTED_CHARS else f'"{words[:MAX_QUOTED_CHARS]}…"'

    @property
    def question(self) -> Question:
        """What an answer is read against."""
        return Question(self.text, self.refusal_wanted)


def build_asked_prompt(messages: Sequence[Message], reference: str | None = None) -> AskedPrompt:
    """The prompt with these turns. `reference` is canonical JSON and may say that a refusal is wanted."""
    wanted = reference is not None and reference.startswith(_REFUSAL_PREFIX) and is_refusal(json.loads(reference))
    return AskedPrompt(get_user_text(messages), tuple(messages) if len(messages) > 1 else (), wanted)


def read_asked_prompts(prompts: pl.DataFrame, refusals: bool) -> dict[str, AskedPrompt]:
    """The prompts of a prompts table by prompt_id, in its order.

    Args:
        prompts: a table with the schema PROMPTS.
        refusals: whether the references are answers that may be refusals.
    """
    single = pl.col("messages").list.len() == 1
    if refusals:
        single &= ~pl.col("reference").str.starts_with(_REFUSAL_PREFIX).fill_null(False)
    # Most prompts are one text: their structs of messages are not turned into Python objects.
    text, messages = pl.when(single).then(user_text_expr()), pl.when(~single).then(pl.col("messages"))
    rows = prompts.select("prompt_id", text.alias("text"), messages.alias("messages"), "reference").iter_rows()
    return {
        id_: AskedPrompt(text) if text is not None else build_asked_prompt(turns, reference if refusals else None)
        for id_, text, turns, reference in rows
    }
