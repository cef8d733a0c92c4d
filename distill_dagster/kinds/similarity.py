"""Similarity of two texts, 0 to 1: token F1, ROUGE (by rouge-score) and chrF (by sacrebleu)."""

from __future__ import annotations

import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer

_ARTICLES = {"a", "an", "the"}
MAX_TOKENS = 2000
"""ROUGE-L takes time proportional to the product of both lengths, so only this many words of a text count."""


def normalize_squad(text: str) -> str:
    """Lower the case and drop punctuation, articles and extra white space (Rajpurkar et al. 2016, SQuAD).

    Unlike SQuAD, this keeps signs that carry meaning (% + $ # =).
    """
    folded = unicodedata.normalize("NFKC", text).lower()
    plain = "".join(c for c in folded if unicodedata.category(c)[0] != "P" or c in "%#")
    return " ".join(word for word in plain.split() if word not in _ARTICLES)


def _compute_f1(hits: float, first: int, second: int) -> float:
    return 2 * hits / (first + second) if first + second else 1.0


def compute_token_f1(first: str, second: str) -> float:
    """Return F1 over bags of words, as SQuAD measures answers."""
    a, b = normalize_squad(first).split(), normalize_squad(second).split()
    return _compute_f1(sum((Counter(a) & Counter(b)).values()), len(a), len(b))


class _WordTokenizer:
    """Splits lower-case words of every script. In English these are the words of rouge-score's own tokenizer.

    That one reads only a to z and 0 to 9, so that a Greek summary would have no word.
    """

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).lower())[:MAX_TOKENS]


@cache
def load_rouge_scorer() -> type[RougeScorer]:
    """Import rouge-score without what its import does to the process.

    absl, which it logs with, keeps the `sys.stderr` of that moment, and closes it when logging is configured anew. If
    it was redirected then, as Dagster does within a step, the process could write no more.
    """
    from absl import logging
    from rouge_score.rouge_scorer import RougeScorer

    logging.get_absl_handler().python_handler.setStream(sys.__stderr__)  # absl does not close this one
    return RougeScorer


@cache
def _make_rouge_scorer(*names: str) -> RougeScorer:
    return load_rouge_scorer()(list(names), tokenizer=_WordTokenizer())


def compute_rouge(text: str, reference: str, *names: str) -> dict[str, float]:
    """Return F-measures of rouge-score, such as rouge1, rouge2 and rougeL (Lin 2004), without stemming."""
    scores = _make_rouge_scorer(*names).score(reference, text)
    return {name: float(scores[name].fmeasure) for name in names}


def compute_rouge_l(text: str, reference: str) -> float:
    """Return the F-measure of the longest common subsequence of words (Lin 2004), by rouge-score."""
    if text == reference:  # also if there is no word in it
        return 1.0
    return compute_rouge(text, reference, "rougeL")["rougeL"]


@cache
def load_sacrebleu() -> Any:
    """Import sacrebleu without what its import does to the process.

    It gives SIGPIPE its default action. Then a client that hangs up, or `| head`, would kill the process without a
    word, and in any thread but the first the import fails.
    """
    with mock.patch("signal.signal"):
        import sacrebleu
    return sacrebleu


@cache
def _make_chrf() -> Any:
    return load_sacrebleu().CHRF()


def compute_chrf(text: str, reference: str) -> float:
    """Return the character n-gram F-score (chrF2, Popović 2015) of one text, by sacrebleu."""
    if text == reference:
        return 1.0
    return min(1.0, float(_make_chrf().sentence_score(text, [reference]).score) / 100)


def compute_bag_f1(first: Iterable[object], second: Iterable[object]) -> float:
    """Return F1 of two bags of hashable values; 1 if both are empty."""
    a, b = Counter(first), Counter(second)
    return _compute_f1(sum((a & b).values()), sum(a.values()), sum(b.values()))
