"""The turns of a prompt: one type for them, and ways to build, split and read them, one by one or as a column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

import polars as pl


class Message(TypedDict):
    """One turn of a conversation, as every table stores it (`schemas.MESSAGES`). `tool_calls` is JSON."""

    role: str
    content: str | None
    tool_calls: str | None
    tool_call_id: str | None
    name: str | None


def make_message(role: str, content: str | None) -> Message:
    """A turn without tool calls."""
    return {"role": role, "content": content, "tool_calls": None, "tool_call_id": None, "name": None}


def make_user_messages(text: str) -> list[Message]:
    """The messages of a prompt with one turn, the user's."""
    return [make_message("user", text)]


def get_user_text(messages: Iterable[Message]) -> str:
    """The user turns of a prompt, one per line: the text that is compared and counted."""
    return "\n".join(message["content"] or "" for message in messages if message["role"] == "user")


def format_messages(messages: Sequence[Message]) -> str:
    """A prompt as one text: only user turns as they are, any other conversation with the role before each turn."""
    if all(message["role"] == "user" for message in messages):
        return get_user_text(messages)
    return format_transcript(messages)


def append_answer(messages: Sequence[Message], answer: str | None) -> list[Message]:
    """The turns of a prompt and the assistant's answer after them."""
    return [*messages, make_message("assistant", answer)]


def split_answer(messages: Sequence[Message]) -> tuple[list[Message], str | None]:
    """The opposite of `append_answer`: the turns of the prompt, and the answer in the last turn."""
    return list(messages[:-1]), messages[-1]["content"]


def format_transcript(messages: Iterable[Message]) -> str:
    """A conversation as one text for models that know no turns, with the role before each turn."""
    return "\n".join(f"{message['role'].capitalize()}: {message['content'] or ''}" for message in messages)


def user_text_expr(column: str = "messages") -> pl.Expr:
    """`get_user_text` as a Polars expression."""
    role, content = pl.element().struct.field("role"), pl.element().struct.field("content")
    return pl.col(column).list.eval(content.filter(role == "user")).list.join("\n")


def normalized_expr(text: pl.Expr) -> pl.Expr:
    """`core.text.normalize_text` as a Polars expression: NFKC, lower case, white space folded."""
    # Python's str.split() takes U+001C to U+001F for white space as well; the regular expression does not.
    folded = text.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"[\s\x1c-\x1f]+", " ")
    return folded.str.strip_chars(" ")
