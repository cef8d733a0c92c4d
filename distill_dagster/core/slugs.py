"""Names for folders and partitions from any text."""

from __future__ import annotations

import re
import unicodedata

_LETTERS = str.maketrans({"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "đ": "d", "ð": "d", "ł": "l", "þ": "th", "ı": "i"})


def slugify(text: str) -> str:
    """A slice key made of the letters and digits of a text; empty if it has none in the Latin script."""
    folded = unicodedata.normalize("NFKD", text.casefold().translate(_LETTERS))
    plain = folded.encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-")
