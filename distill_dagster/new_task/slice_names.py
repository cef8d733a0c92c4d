"""Names of slices from the values of a column: `Phone note` becomes `phone-note`."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable

from distill_dagster.core.hashing import hash_content
from distill_dagster.core.slugs import slugify

MAX_SLICES = 200
"""More slices than this are a mistake: a slice is a partition with its own runs."""


def name_slices(values: Iterable[str]) -> dict[str, str]:
    """A slice key for each value. Values that differ in case or spaces only share one; all others differ.

    Of two values with the same letters, such as `C++` and `C#`, the more frequent one has the plain key.
    """
    counts = Counter(values)
    groups: dict[str, list[str]] = {}
    for value in counts:
        groups.setdefault(_fold(value), []).append(value)
    ranked = sorted(groups, key=lambda folded: (-sum(counts[value] for value in groups[folded]), folded))
    taken: set[str] = set()
    names: dict[str, str] = {}
    for folded in ranked:
        key = slugify(folded)
        if not key or key in taken:
            key = f"{(key or 'slice')[:55]}-{hash_content(folded)[:6]}"
        taken.add(key)
        names |= dict.fromkeys(groups[folded], key)
    return names


def _fold(value: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", value).casefold().split())
