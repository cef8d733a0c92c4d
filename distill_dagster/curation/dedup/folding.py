"""Text folding before a comparison, the definition of a word, and the settings that hashes depend on."""

from __future__ import annotations

import sys
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.core.hashing import hash_content
from distill_dagster.tables.messages import normalized_expr

if TYPE_CHECKING:
    import numpy as np

HASH_VERSION = 1
"""Raise it with any change to folding, words or hashes. Stored states of another version are not read."""

# Scripts written without spaces: each letter counts as a word. (First, last) code points.
_UNSPACED_SCRIPTS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_CODE_POINT_END = 0x40000
"""Characters from this code point on are never part of a word."""
_UNSPACED_CLASS = "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in _UNSPACED_SCRIPTS)
_LETTERS = rf"[\p{{L}}\p{{M}}\p{{N}}_--[\x{{{_CODE_POINT_END:X}}}-\x{{{sys.maxunicode:X}}}]]"
WORD_PATTERN = f"[{_LETTERS}&&[{_UNSPACED_CLASS}]]|[{_LETTERS}--[{_UNSPACED_CLASS}]]+"
"""A word in folded text as a regular expression (Rust's syntax). `build_character_classes` is the kernel's version."""
QUIET_MARKS = ".,;:!?'\"()-"
"""Punctuation that ends and joins sentences. Together with punctuation beyond ASCII it is not part of the key of exact
duplicates, unless it is significant: within a number, or as a sign before a word. Symbols such as + = < % always are
part of the key."""
_PLACEHOLDERS = {mark: chr(0xFDD0 + n) for n, mark in enumerate(",-.:!")}
"""Code points without characters that replace significant marks while the other marks are removed."""
_WORD_CHARACTERS = r"0-9a-z_\x{80}-\x{FDCF}\x{FDF0}-\x{10FFFF}"


@dataclass(frozen=True)
class MinHashScheme:
    """Settings of near-duplicate search. Only signatures of the same scheme can be compared.

    Args:
        ngram: number of words in a shingle. Two find more edited rows; three find fewer pairs that are alike by chance.
        bands: number of keys per row. Two rows become candidates if they share a key.
        rows_per_band: number of MinHash functions per key. A pair with Jaccard similarity J becomes a candidate with
            the probability 1 - (1 - J^rows_per_band)^bands.
        min_words: rows with fewer words are only compared exactly. Short texts that differ in one word share most of
            their words, but often mean different things.
        keep_numbers: rows with different numbers are never near-duplicates. Use it for maths.
    """

    ngram: int = 3
    bands: int = 24
    rows_per_band: int = 4
    min_words: int = 12
    keep_numbers: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.ngram <= 32 or self.min_words < 1:
            raise ValueError("ngram must be from 1 to 32, and min_words at least 1")
        if not 1 <= self.bands <= 256 or not 1 <= self.rows_per_band <= 32:
            raise ValueError("bands must be from 1 to 256, and rows_per_band from 1 to 32")

    @property
    def id(self) -> str:
        """16 hex digits: a hash of everything that a signature depends on."""
        return hash_content(
            {
                "ngram": self.ngram,
                "bands": self.bands,
                "rows_per_band": self.rows_per_band,
                "min_words": self.min_words,
                "keep_numbers": self.keep_numbers,
                "hash_version": HASH_VERSION,
            }
        )[:16]

    def compute_recall(self, jaccard: float) -> float:
        """The probability that a pair with this Jaccard similarity becomes a candidate."""
        return 1.0 - (1.0 - jaccard**self.rows_per_band) ** self.bands

    @property
    def key_columns(self) -> list[str]:
        """The names of the columns with band keys."""
        return [f"k{band:02}" for band in range(self.bands)]


@lru_cache(maxsize=1)
def _build_case_folding() -> dict[str, str]:
    """Lower-case characters whose case folding differs from them, such as ß and final sigma."""
    characters = map(chr, range(0x20000))
    return {c: c.casefold() for c in characters if c.lower() == c != c.casefold()}


def folded_expr(text: pl.Expr) -> pl.Expr:
    """The text in which duplicates are compared: `messages.normalized_expr`, then Unicode case folding. Null is empty.

    Texts that are equal under `normalized_expr` are equal here too; the opposite does not hold.
    """
    folding = _build_case_folding()
    normalized = normalized_expr(text.fill_null(""))
    return normalized.str.replace_many(list(folding), list(folding.values())).str.normalize("NFKC")


def fold_non_ascii(texts: pl.Series) -> pl.Series:
    """`folded_expr` of texts beyond ASCII, five times as fast. White space stays as it is, since the kernel folds it.

    Normalization takes most of the time, so only texts with a character that it may change are normalized.
    """
    texts = _change_matching(texts, _build_unstable_pattern(), pl.col("text").str.normalize("NFKC")).str.to_lowercase()
    folding = _build_case_folding()
    replaced = pl.col("text").str.replace_many(list(folding), list(folding.values()))
    texts = _change_matching(texts, f"[{''.join(folding)}]", replaced)
    return _change_matching(texts, _build_unstable_pattern(), pl.col("text").str.normalize("NFKC"))


def _change_matching(texts: pl.Series, pattern: str, change: pl.Expr) -> pl.Series:
    """The texts with `change` applied to those that match the pattern."""
    places = texts.str.contains(pattern).arg_true()
    if places.is_empty():
        return texts
    part = texts.gather(places).alias("text").to_frame().select(change).to_series()
    order = pl.Series(range(texts.len()), dtype=pl.UInt32).scatter(places, range(texts.len(), texts.len() + part.len()))
    return pl.concat([texts, part.alias(texts.name)]).gather(order)


@lru_cache(maxsize=1)
def _build_unstable_pattern() -> str:
    """A character class with all characters that NFKC may change, alone or after another character."""
    spans: list[list[int]] = []
    # From 0x30000 on, NFKC changes no character.
    for code in (*range(0x80, 0xD800), *range(0xE000, 0x30000)):
        character = chr(code)
        joins = unicodedata.combining(character) or 0x1100 <= code < 0x1200  # parts of Korean syllables
        if joins or not unicodedata.is_normalized("NFKC", character):
            if spans and spans[-1][1] == code - 1:
                spans[-1][1] = code
            else:
                spans.append([code, code])
    return "[" + "".join(f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in spans) + "]"


def exact_key_expr(folded: pl.Expr) -> pl.Expr:
    """The key of exact duplicates for a folded text: without quiet marks, unless the text has no words.

    The kernel's exact keys are hashes of this key.
    """
    key = folded
    for mark in "!-":
        key = key.str.replace_all(
            rf"(^|[^{_WORD_CHARACTERS}])\{mark}([{_WORD_CHARACTERS}])", f"${{1}}{_PLACEHOLDERS[mark]}${{2}}"
        )
    for mark in ",-.:":
        key = key.str.replace_all(rf"\{mark}([0-9])", f"{_PLACEHOLDERS[mark]}${{1}}")
    key = key.str.replace_all(r"[.,;:!?'\x22()\-\s]|[\p{P}--[\x00-\x7F]]", " ").str.replace_all(" +", " ")
    key = key.str.strip_chars(" ").str.replace_many(list(_PLACEHOLDERS.values()), list(_PLACEHOLDERS))
    return pl.when(folded.str.contains(WORD_PATTERN)).then(key).otherwise(folded)


@lru_cache(maxsize=1)
def build_character_classes() -> np.ndarray[Any, Any]:
    """The class of each character below `_CODE_POINT_END`, by the numbers that the kernel uses.

    0 between words, 1 part of a word, 2 a word of its own, 3 part of a word and of a number, 4 a quiet mark beyond
    ASCII, 5 white space beyond ASCII.
    """
    import numpy as np

    out = np.zeros(_CODE_POINT_END, np.uint8)
    for code in range(_CODE_POINT_END):
        kind = unicodedata.category(chr(code))
        if kind == "Nd":
            out[code] = 3
        elif kind[0] in "LMN" or code == 0x5F:
            out[code] = 1
        elif kind[0] == "P" and code >= 0x80:
            out[code] = 4
        elif code >= 0x80 and chr(code).isspace():
            out[code] = 5
    for first, last in _UNSPACED_SCRIPTS:
        part = out[first : last + 1]
        part[(part > 0) & (part < 4)] = 2
    return out


@lru_cache(maxsize=1)
def build_lowercase_table() -> np.ndarray[Any, Any]:
    """Per byte: the lower case of an ASCII word character, 1 for white space, 2 for a quiet mark, otherwise 0."""
    import numpy as np

    out = np.zeros(256, np.uint8)
    for code in range(128):
        if build_character_classes()[code]:
            out[code] = ord(chr(code).lower())
        elif chr(code).isspace():
            out[code] = 1
        elif chr(code) in QUIET_MARKS:
            out[code] = 2
    return out


@lru_cache(maxsize=8)
def build_minhash_seeds(functions: int) -> np.ndarray[Any, Any]:
    """The constants of the MinHash functions, shape (2, functions). They are fixed: SplitMix64's sequence."""
    import numpy as np

    mask, values = (1 << 64) - 1, []
    for number in range(1, 2 * functions + 1):
        z = (number * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        values.append((z ^ (z >> 31)) >> 32)
    out = np.array(values, np.uint32).reshape(functions, 2).T.copy()
    out[1] |= 1  # an odd factor makes the multiplication a permutation of the 32-bit numbers
    return out
