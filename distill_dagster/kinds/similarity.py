"""Similarity of two texts, 0 to 1: token F1, ROUGE-L and chrF."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable

_ARTICLES = {"a", "an", "the"}
MAX_TOKENS = 2000
"""ROUGE-L takes time proportional to the product of both lengths, so only this many words of a text count."""
CHRF_ORDER, CHRF_BETA = 6, 2


def normalize_squad(text: str) -> str:
    """Lower the case and drop punctuation, articles and extra white space (Rajpurkar et al. 2016, SQuAD).

    Unlike SQuAD, this keeps signs that carry meaning (% + $ # =).
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(c for c in folded if unicodedata.category(c)[0] != "P" or c in "%#")
    return " ".join(word for word in plain.split() if word not in _ARTICLES)


def _split_words(text: str) -> list[str]:
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


def _compute_f1(hits: float, first: int, second: int) -> float:
    return 2 * hits / (first + second) if first + second else 1.0


def compute_token_f1(first: str, second: str) -> float:
    """Return F1 over bags of words, as SQuAD measures answers."""
    a, b = normalize_squad(first).split(), normalize_squad(second).split()
    return _compute_f1(sum((Counter(a) & Counter(b)).values()), len(a), len(b))


def compute_rouge_l(first: str, second: str) -> float:
    """Return F1 of the longest common subsequence of words (Lin 2004, precision and recall weighted equally)."""
    a, b = _split_words(first)[:MAX_TOKENS], _split_words(second)[:MAX_TOKENS]
    row = [0] * (len(b) + 1)
    for word in a:
        diagonal = 0
        for j, other in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if word == other else max(above, row[j - 1])
            diagonal = above
    return _compute_f1(row[-1], len(a), len(b))


def compute_chrf(text: str, reference: str) -> float:
    """Return the character n-gram F-score for n = 1 to 6, recall weighted twice as much (Popović 2015)."""
    a, b = ("".join(unicodedata.normalize("NFKC", t).split()) for t in (text, reference))
    if a == b:
        return 1.0
    scores = []
    for n in range(1, CHRF_ORDER + 1):
        x, y = _count_grams(a, n), _count_grams(b, n)
        hits, total_x, total_y = sum((x & y).values()), sum(x.values()), sum(y.values())
        if not total_x and not total_y:
            continue
        precision, recall = hits / total_x if total_x else 0.0, hits / total_y if total_y else 0.0
        weighted = CHRF_BETA**2 * precision + recall
        scores.append((1 + CHRF_BETA**2) * precision * recall / weighted if weighted else 0.0)
    return sum(scores) / len(scores) if scores else 1.0


def _count_grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


def compute_bag_f1(first: Iterable[object], second: Iterable[object]) -> float:
    """Return F1 of two bags of hashable values; 1 if both are empty."""
    a, b = Counter(first), Counter(second)
    return _compute_f1(sum((a & b).values()), sum(a.values()), sum(b.values()))
