"""Near-duplicates within one slice, found while its prompts are imagined."""

from __future__ import annotations

import re
from collections import Counter
from typing import Literal

from distill_dagster.tasks import normalize_text

MIN_NEAR_WORDS = 12
"""Texts with fewer words share their 3-grams by chance: of them only equal ones are repeats."""
_WORD = re.compile(r"\w+")
Repeat = Literal["duplicate", "near_duplicate"]


def split_words(text: str) -> tuple[str, ...]:
    """The words of a text without case and punctuation."""
    return tuple(_WORD.findall(normalize_text(text)))


class SeenPrompts:
    """Texts that are there already, and whether another one repeats one of them.

    Equal words are a duplicate. From 12 words on, so is a Jaccard similarity of word 3-grams of `threshold` or more
    (Broder 1997), computed exactly; candidates are found by the 3-grams they share.
    """

    def __init__(self, threshold: float, texts: list[str] | None = None) -> None:
        self._threshold = threshold
        self._exact: set[tuple[str, ...] | str] = set()
        self._sizes: list[int] = []
        self._by_gram: dict[tuple[str, ...], list[int]] = {}
        for text in texts or []:
            self.add(text)

    def add(self, text: str) -> None:
        words = split_words(text)
        self._exact.add(words or normalize_text(text))
        grams = _build_grams(words)
        if not grams:
            return
        for gram in grams:
            self._by_gram.setdefault(gram, []).append(len(self._sizes))
        self._sizes.append(len(grams))

    def repeats(self, text: str) -> Repeat | None:
        """How a text repeats a known one, or None where it is new."""
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
