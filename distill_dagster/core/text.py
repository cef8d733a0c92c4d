"""Normalized texts: the key of exact duplicates."""

from __future__ import annotations


def normalize_text(text: str) -> str:
    """The key of exact duplicates; `tables.normalized_expr` is the same as a query."""
    import unicodedata

    return " ".join(unicodedata.normalize("NFKC", text).lower().split())
