"""The turns of a prompt: building them, and reading them as text, one by one or as a column."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl


def get_user_text(messages: list[dict[str, str | None]]) -> str:
    """The user turns of a prompt, one below the other: what is compared, counted and shown."""
    return "\n".join(m["content"] or "" for m in messages if m["role"] == "user")


def format_messages(messages: list[dict[str, str | None]]) -> str:
    """A prompt as one text: its only user turn as it is, a conversation as turns with their roles."""
    if all(m["role"] == "user" for m in messages):
        return get_user_text(messages)
    return format_transcript((m["role"] or "", m["content"] or "") for m in messages)


def format_transcript(turns: Iterable[tuple[str, str]]) -> str:
    """A conversation as one text, for models that know no turns."""
    return "\n".join(f"{role.capitalize()}: {content}" for role, content in turns)


def user_text_expr(column: str = "messages") -> pl.Expr:
    """`user_text` as a Polars expression."""
    role, content = pl.element().struct.field("role"), pl.element().struct.field("content")
    return pl.col(column).list.eval(content.filter(role == "user")).list.join("\n")


def normalized_expr(text: pl.Expr) -> pl.Expr:
    """The key of exact duplicates: Unicode NFKC, lower case, white space folded."""
    # Python's str.split() takes U+001C to U+001F for white space as well; the regular expression does not.
    folded = text.str.normalize("NFKC").str.to_lowercase().str.replace_all(r"[\s\x1c-\x1f]+", " ")
    return folded.str.strip_chars(" ")


def make_user_message(text: str) -> list[dict[str, str | None]]:
    return [{"role": "user", "content": text, "tool_calls": None, "tool_call_id": None, "name": None}]
