"""Normalized texts: the key of exact duplicates."""

from __future__ import annotations


def normalize_text(text: str) -> str:
    """The key of exact duplicates: NFKC, lower case, white space folded.

    `messages.normalized_expr` is the same in Polars.
    """
    import unicodedata

    return " ".join(unicodedata.normalize("NFKC", text).lower().split())
