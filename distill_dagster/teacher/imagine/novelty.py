"""Find repeats within one slice while its prompts are imagined: duplicates and near-duplicates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Literal

from distill_dagster.core.text import normalize_text

MIN_NEAR_WORDS = 12
"""Texts with fewer words share 3-grams by chance, so only equal ones are repeats."""
_WORD = re.compile(r"\w+")
Repeat = Literal["duplicate", "near_duplicate"]


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of a text, without case and punctuation."""
    return tuple(_WORD.findall(normalize_text(text)))


class SeenPrompts:
    """The texts of a slice, to find out whether another text repeats one of them.

    A text with equal words is a duplicate. From `MIN_NEAR_WORDS` words on, it is a near-duplicate if its word 3-grams
    have a Jaccard similarity of `threshold` or more (Broder 1997). The similarity is exact, not an estimate.
    """

    def __init__(self, threshold: float, texts: Iterable[str] = ()) -> None:
        self._threshold = threshold
        self._exact: set[tuple[str, ...] | str] = set()
        self._sizes: list[int] = []
        self._by_gram: dict[tuple[str, ...], list[int]] = {}
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Add a text."""
        words = split_words(text)
        self._exact.add(words or normalize_text(text))
        grams = _build_grams(words)
        if not grams:
            return
        for gram in grams:
            self._by_gram.setdefault(gram, []).append(len(self._sizes))
        self._sizes.append(len(grams))

    def find_repeat(self, text: str) -> Repeat | None:
        """Return how a text repeats an added one, or None if it is new."""
        words = split_words(text)
        if (words or normalize_text(text)) in self._exact:
            return "duplicate"
        grams = _build_grams(words)
        shared = Counter(place for gram in grams for place in self._by_gram.get(gram, ()))
        for place, both in shared.items():
            if both / (len(grams) + self._sizes[place] - both) >= self._threshold:
                return "near_duplicate"
        return None


def _build_grams(words: tuple[str, ...]) -> set[tuple[str, ...]]:
    if len(words) < MIN_NEAR_WORDS:
        return set()
    return {words[n : n + 3] for n in range(len(words) - 2)}
