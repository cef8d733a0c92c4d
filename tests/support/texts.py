"""Small tables of texts with near-duplicates, and brute force to find them."""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Callable
from typing import Any

import polars as pl
from hypothesis import strategies as st

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "3", "dogs", "run", "home", "late", "at", "night"]
SPELLINGS: list[Callable[[str], str]] = [str, str.upper, str.title]


def fold(text: str) -> str:
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return " ".join(folded.split())


def exact_key(text: str) -> str:
    """The key that exact duplicates share: marks that only end or join sentences are removed."""
    folded = fold(text)
    if not any(c == "_" or unicodedata.category(c)[0] in "LMN" for c in folded):
        return folded
    word = r"[0-9a-z_\u0080-\U0010ffff]"
    significant = re.compile(rf"[,\-.:](?=[0-9])|(?<!{word})[!\-](?={word})")
    kept_places = {match.start() for match in significant.finditer(folded)}
    quiet = [
        i not in kept_places and (c in ".,;:!?'\"()-" or (ord(c) > 127 and unicodedata.category(c)[0] == "P"))
        for i, c in enumerate(folded)
    ]
    return " ".join("".join(" " if q else c for q, c in zip(quiet, folded, strict=True)).split())


def shingle_set(text: str, n: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", fold(text))
    n = min(n, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if words else set()


def numbers(text: str) -> list[str]:
    return re.findall(r"-?\d+(?:[.,/]\d+)*", fold(text))


def find_pairs_by_brute_force(
    rows: dict[str, str], ngram: int, threshold: float, min_words: int, keep_numbers: bool = False
) -> dict[tuple[str, str], float]:
    """Every pair of ids that is an exact (1.0) or near-duplicate, with its Jaccard similarity."""
    found = {}
    sets = {id_: shingle_set(text, ngram) for id_, text in rows.items()}
    words = {id_: len(re.findall(r"\w+", fold(text))) for id_, text in rows.items()}
    for a, b in itertools.combinations(sorted(rows), 2):
        if exact_key(rows[a]) == exact_key(rows[b]):
            found[a, b] = 1.0
        elif min(words[a], words[b]) >= max(min_words, 1):
            jaccard = len(sets[a] & sets[b]) / len(sets[a] | sets[b])
            if jaccard >= threshold and not (keep_numbers and numbers(rows[a]) != numbers(rows[b])):
                found[a, b] = jaccard
    return found


def find_clusters_by_brute_force(ids: list[str], pairs: dict[tuple[str, str], float]) -> dict[str, frozenset[str]]:
    """The cluster of each id in a cluster of two or more."""
    clusters = {id_: {id_} for id_ in ids}
    for a, b in pairs:
        joined = clusters[a] | clusters[b]
        for member in joined:
            clusters[member] = joined
    return {id_: frozenset(cluster) for id_, cluster in clusters.items() if len(cluster) > 1}


def apply_edits(words: list[str], edits: list[tuple[int, str]]) -> list[str]:
    words = list(words)
    for place, word in edits:
        words[place % len(words)] = word
    return words


@st.composite
def tables(draw: st.DrawFn, most: int = 14) -> pl.DataFrame:
    """Rows `id`, `text`, `rank`: fresh texts, copies with a word or two changed, and copies in another spelling."""
    word = st.sampled_from(WORDS)
    texts: list[list[str]] = []
    rows: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, most))):
        if bool(texts) and draw(st.booleans()):
            edits = draw(st.lists(st.tuples(st.integers(0, 40), word), max_size=2))
            texts.append(apply_edits(draw(st.sampled_from(texts)), edits))
        else:
            texts.append(draw(st.lists(word, min_size=1, max_size=30)))
        text = draw(st.sampled_from([" ", "  ", "\n", ", ", " -"])).join(texts[-1])
        text = draw(st.sampled_from(SPELLINGS))(text)
        rows.append({"text": text, "rank": draw(st.sampled_from([0, 1, None]))})
    ids = draw(st.permutations(range(len(rows))))
    rows = [{"id": f"r{n:02}"} | row for n, row in zip(ids, rows, strict=True)]
    return pl.DataFrame(rows, {"id": pl.String, "text": pl.String, "rank": pl.Int64})
