"""Compiled text statistics: words, digits, lines, repetition and echoes of each text, by numba.

The kernels read the Arrow string buffer. They create no Python object per row, which makes them at least five times as
fast. White space separates words, and characters are code points. The definitions are those of Gopher (Rae et al. 2021,
"Scaling Language Models", appendix A1.1) as huggingface/datatrove implements them, with two differences. A top n-gram
counts only if it occurs twice, since otherwise one n-gram would fill every short text. Words are not split at
punctuation.
"""

from __future__ import annotations

from threading import Lock
from typing import Any

import numba as nb
import numpy as np
import polars as pl

from distill_dagster.curation.scores.prose import PROSE_FIELDS

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
"""English stop words: Gopher's list."""
KERNEL_CHUNK_ROWS = 256
_BASE = np.uint64(0x100000001B3)
_START = np.uint64(0xCBF29CE484222325)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_KERNEL_LOCK = Lock()
"""numba's threads abort the process if two threads start a parallel kernel at the same time."""


def _pack_word(word: str) -> int:
    """The bytes of a short word as one number, as `_hash_words` computes it."""
    return int.from_bytes(word.encode(), "big")


_PACKED_STOP_WORDS = np.array([_pack_word(word) for word in STOP_WORDS], dtype=np.uint64)


@nb.njit(cache=True, inline="always")
def _find_slot(table: Any, stamps: Any, stamp: int, mask: int, key: Any) -> Any:
    """The slot of a key in an open-addressing table, or the free slot for it. Entries with an older stamp are free."""
    at = ((key ^ (key >> np.uint64(29))) * _MIX) >> np.uint64(20)
    i = np.int64(at) & mask
    while stamps[i] == stamp and table[i] != key:
        i = (i + 1) & mask
    return i


@nb.njit(cache=True)
def _hash_words(data: Any, start: int, end: int, stops: Any, word: Any, length: Any) -> tuple[int, int, int, int]:
    """Write hash and length of each word. Returns words, characters, words with a letter, stop words as a bit set."""
    n, chars, alphabetic, found = 0, 0, 0, 0
    i = start
    while i < end:
        while i < end and data[i] <= 32:
            chars += 1
            i += 1
        if i >= end:
            break
        exact, packed, letters, size = _START, np.uint64(0), False, 0
        while i < end and data[i] > 32:
            b = data[i]
            exact = (exact ^ np.uint64(b)) * _BASE
            size += (b & 0xC0) != 0x80
            low = b | 32
            if 97 <= low <= 122:
                letters = True
                packed = (packed << np.uint64(8)) | np.uint64(low)
            elif b >= 128:
                letters = True
                packed = np.uint64(1) << np.uint64(63)
            i += 1
        if size <= 6:
            for s in range(stops.shape[0]):
                if stops[s] == packed:
                    found |= 1 << s
        word[n], length[n] = exact, size
        chars += size
        alphabetic += letters
        n += 1
    return n, chars, alphabetic, found


@nb.njit(cache=True)
def _hash_folded_words(data: Any, start: int, end: int, word: Any) -> int:
    """Write the hash of each word, in lower case and without punctuation around it. Returns the number of words."""
    n = 0
    i = start
    while i < end:
        while i < end and data[i] <= 32:
            i += 1
        if i >= end:
            break
        at, last = _START, _START
        while i < end and data[i] > 32:
            b = data[i]
            upper = 65 <= b <= 90
            if upper or 97 <= b <= 122 or b >= 128 or 48 <= b <= 57:
                at = (at ^ np.uint64(b + 32 if upper else b)) * _BASE
                last = at
            elif last != _START:  # punctuation within a word counts if letters follow
                at = (at ^ np.uint64(b)) * _BASE
            i += 1
        word[n] = last
        n += 1
    return n


@nb.njit(cache=True)
def _count_lines(data: Any, start: int, end: int, table: Any, stamps: Any, stamp: int, mask: int, out: Any) -> int:
    """Count lines and paragraphs into `out`. Empty lines do not count. Returns the next stamp.

    0 to 4: lines, duplicate lines, their characters, bullet lines, lines that end in an ellipsis. 5 to 7: paragraphs,
    duplicate paragraphs, their characters.
    """
    for k in range(8):
        out[k] = 0
    line, para = _START, _START
    size, para_size, breaks = 0, 0, 0
    bullet, first, dots = False, True, 0
    i = start
    while i <= end:
        b = data[i] if i < end else np.uint8(10)
        if b == 10:
            if size > 0:
                out[0] += 1
                i0 = _find_slot(table, stamps, stamp, mask, line)
                if stamps[i0] == stamp:
                    out[1] += 1
                    out[2] += size
                else:
                    table[i0], stamps[i0] = line, stamp
                out[3] += bullet
                out[4] += dots >= 3
            breaks += 1
            if (breaks >= 2 or i == end) and para_size > 0:
                out[5] += 1
                key = para ^ _MIX  # a paragraph must not match an equal line
                i0 = _find_slot(table, stamps, stamp, mask, key)
                if stamps[i0] == stamp:
                    out[6] += 1
                    out[7] += para_size
                else:
                    table[i0], stamps[i0] = key, stamp
                para, para_size = _START, 0
            line, size, bullet, first, dots = _START, 0, False, True, 0
        elif b > 32 or size > 0:
            breaks = 0 if b > 32 else breaks
            if first and b > 32:
                round_ = b == 0xE2 and i + 2 < end and data[i + 1] == 0x80 and data[i + 2] == 0xA2  # •
                bullet = b == 45 or round_
                first = False
            if b == 46:
                dots += 1
            elif b == 0xE2 and i + 2 < end and data[i + 1] == 0x80 and data[i + 2] == 0xA6:  # …
                dots = 3
                line = (line ^ np.uint64(b)) * _BASE
                para = (para ^ np.uint64(b)) * _BASE
                i += 2
                b = data[i]
                size += 1
                para_size += 1
            elif b > 32:
                dots = 0
            line = (line ^ np.uint64(b)) * _BASE
            para = (para ^ np.uint64(b)) * _BASE
            if (b & 0xC0) != 0x80:
                size += 1
                para_size += 1
        i += 1
    return stamp + 1


@nb.njit(cache=True)
def _measure_text(
    data: Any,
    start: int,
    end: int,
    stops: Any,
    scratch: Any,
    table: Any,
    counts: Any,
    stamps: Any,
    stamp: int,
    out: Any,
) -> int:
    """Write the figures of `PROSE_FIELDS` of one text into `out`. Returns the next stamp."""
    word, gram, length, before = scratch[0], scratch[1], scratch[2], scratch[3]
    n, chars, alphabetic, found = _hash_words(data, start, end, stops, word, length)
    mask = 63
    while mask < 2 * (n + 8):
        mask = mask * 2 + 1
    parts = np.empty(8, np.int64)
    # A text has at most as many lines and paragraphs as words.
    mask4 = mask * 2 + 1
    stamp = _count_lines(data, start, end, table, stamps, stamp, mask4, parts)
    for k in range(out.shape[0]):
        out[k] = 0.0
    out[0] = n
    if n == 0 or chars == 0:
        return stamp
    lines, paragraphs = max(parts[0], 1), max(parts[5], 1)
    out[1], out[2] = parts[1] / lines, parts[2] / chars
    out[3], out[4] = parts[6] / paragraphs, parts[7] / chars
    before[0] = np.uint64(0)
    for k in range(n):
        before[k + 1] = before[k] + length[k]
        gram[k] = word[k]
    repeated = True
    for size in range(2, 11):
        for k in range(n - size + 1):
            gram[k] = (gram[k] ^ (word[k + size - 1] + _MIX)) * _BASE
        if n < size or not repeated:
            break  # if no shorter n-gram repeats, no longer one does
        repeated = False
        if size <= 4:
            most, widest = np.int64(1), np.int64(0)
            for k in range(n - size + 1):
                i = _find_slot(table, stamps, stamp, mask, gram[k])
                if stamps[i] == stamp:
                    counts[i] += 1
                    c = counts[i]
                    wide = np.int64(before[k + size] - before[k]) + size - 1
                    repeated = True
                    if c > most or (c == most and wide > widest):
                        most, widest = c, wide
                else:
                    table[i], stamps[i], counts[i] = gram[k], stamp, 1
            if most > 1:
                out[3 + size] = min(most * widest / chars, 1.0)
        else:
            k, repeated_chars = 0, np.int64(0)
            while k < n - size + 1:
                i = _find_slot(table, stamps, stamp, mask, gram[k])
                if stamps[i] == stamp:
                    repeated_chars += np.int64(before[k + size] - before[k])
                    k += size
                    repeated = True
                else:
                    table[i], stamps[i] = gram[k], stamp
                    k += 1
            out[3 + size] = repeated_chars / chars
        stamp += 1
    hashes, ellipses = 0, 0
    i = start
    while i < end:
        b = data[i]
        if b == 35:
            hashes += 1
        elif (b == 46 and i + 2 < end and data[i + 1] == 46 and data[i + 2] == 46) or (
            b == 0xE2 and i + 2 < end and data[i + 1] == 0x80 and data[i + 2] == 0xA6
        ):
            ellipses += 1
            i += 2
        i += 1
    stop = 0
    for k in range(stops.shape[0]):
        stop += (found >> k) & 1
    out[14] = np.int64(before[n]) / n
    out[15], out[16] = hashes / n, ellipses / n
    out[17], out[18] = parts[3] / lines, parts[4] / lines
    out[19], out[20] = alphabetic / n, stop
    return stamp


@nb.njit(cache=True, parallel=True, nogil=True)
def _measure_texts(offsets: Any, data: Any, stops: Any, out: Any) -> None:
    rows = offsets.shape[0] - 1
    for chunk in nb.prange((rows + KERNEL_CHUNK_ROWS - 1) // KERNEL_CHUNK_ROWS):
        first, last = chunk * KERNEL_CHUNK_ROWS, min(rows, (chunk + 1) * KERNEL_CHUNK_ROWS)
        longest = 0
        for r in range(first, last):
            longest = max(longest, offsets[r + 1] - offsets[r])
        most = longest // 2 + 2  # at least one byte separates two words
        scratch = np.empty((4, most + 2), np.uint64)
        size = 128
        while size < 8 * (most + 8):
            size *= 2
        table, counts, stamps = np.empty(size, np.uint64), np.empty(size, np.int64), np.zeros(size, np.int64)
        stamp = 1
        for r in range(first, last):
            stamp = _measure_text(
                data, offsets[r], offsets[r + 1], stops, scratch, table, counts, stamps, stamp, out[r]
            )


@nb.njit(cache=True, parallel=True, nogil=True)
def _count_words(offsets: Any, data: Any, out: Any) -> None:
    rows = offsets.shape[0] - 1
    for chunk in nb.prange((rows + KERNEL_CHUNK_ROWS - 1) // KERNEL_CHUNK_ROWS):
        for r in range(chunk * KERNEL_CHUNK_ROWS, min(rows, (chunk + 1) * KERNEL_CHUNK_ROWS)):
            inside, n = False, 0
            for i in range(offsets[r], offsets[r + 1]):
                space = data[i] <= 32
                n += not space and not inside
                inside = not space
            out[r] = n


@nb.njit(cache=True, parallel=True, nogil=True)
def _count_digits(offsets: Any, data: Any, out: Any) -> None:
    rows = offsets.shape[0] - 1
    for chunk in nb.prange((rows + KERNEL_CHUNK_ROWS - 1) // KERNEL_CHUNK_ROWS):
        for r in range(chunk * KERNEL_CHUNK_ROWS, min(rows, (chunk + 1) * KERNEL_CHUNK_ROWS)):
            n = 0
            for i in range(offsets[r], offsets[r + 1]):
                n += 48 <= data[i] <= 57
            out[r] = n


@nb.njit(cache=True, parallel=True, nogil=True)
def _measure_echoes(offsets: Any, data: Any, offsets2: Any, data2: Any, out: Any, n: int, short: int) -> None:
    rows = offsets.shape[0] - 1
    for chunk in nb.prange((rows + KERNEL_CHUNK_ROWS - 1) // KERNEL_CHUNK_ROWS):
        first, last = chunk * KERNEL_CHUNK_ROWS, min(rows, (chunk + 1) * KERNEL_CHUNK_ROWS)
        longest = 0
        for r in range(first, last):
            longest = max(longest, offsets[r + 1] - offsets[r], offsets2[r + 1] - offsets2[r])
        most = longest // 2 + 4
        answer, prompt = np.empty(most, np.uint64), np.empty(most, np.uint64)
        size = 128
        while size < 4 * most:
            size *= 2
        table, stamps = np.empty(size, np.uint64), np.zeros(size, np.int64)
        for r in range(first, last):
            words = _hash_folded_words(data, offsets[r], offsets[r + 1], answer)
            given = _hash_folded_words(data2, offsets2[r], offsets2[r + 1], prompt)
            same = words == given and words > 0
            for k in range(words):
                same = same and answer[k] == prompt[k]
                if not same:
                    break
            if same or words < short:
                out[r] = 1.0 if same else np.nan
                continue
            stamp, mask = r + 1, 63
            while mask < 2 * given:
                mask = mask * 2 + 1
            for k in range(given - n + 1):
                key = _START
                for j in range(n):
                    key = (key ^ (prompt[k + j] + _MIX)) * _BASE
                i = _find_slot(table, stamps, stamp, mask, key)
                table[i], stamps[i] = key, stamp
            found = 0
            for k in range(words - n + 1):
                key = _START
                for j in range(n):
                    key = (key ^ (answer[k + j] + _MIX)) * _BASE
                found += stamps[_find_slot(table, stamps, stamp, mask, key)] == stamp
            out[r] = found / (words - n + 1)


def measure_prose(texts: pl.Series) -> pl.DataFrame:
    """Measure each text: one row per text with the columns `PROSE_FIELDS`, rounded. Null counts as an empty text."""
    offsets, data = _get_buffers(texts)
    out = np.empty((len(texts), len(PROSE_FIELDS)), np.float64)
    with _KERNEL_LOCK:
        _measure_texts(offsets, data, _PACKED_STOP_WORDS, out)
    return pl.DataFrame(np.round(out, 4), schema=list(PROSE_FIELDS), orient="row")


def count_words(texts: pl.Series) -> pl.Series:
    """The number of words of each text; null stays null."""
    offsets, data = _get_buffers(texts)
    out = np.empty(len(texts), np.int64)
    with _KERNEL_LOCK:
        _count_words(offsets, data, out)
    return pl.Series(out).set(texts.is_null(), None)


def count_digits(texts: pl.Series) -> pl.Series:
    """The number of digits 0 to 9 in each text."""
    offsets, data = _get_buffers(texts)
    out = np.empty(len(texts), np.int64)
    with _KERNEL_LOCK:
        _count_digits(offsets, data, out)
    return pl.Series(out)


def measure_echo(answers: pl.Series, prompts: pl.Series, n: int = 3, short: int = 8) -> pl.Series:
    """The share of an answer's n-grams that occur in its prompt. Case and punctuation around words do not count.

    It is 1 if the words of the answer are those of the prompt, and null for other answers of fewer than `short` words.
    """
    out = np.empty(len(answers), np.float64)
    with _KERNEL_LOCK:
        _measure_echoes(*_get_buffers(answers), *_get_buffers(prompts), out, n, short)
    return pl.Series("echo", np.round(out, 4)).fill_nan(None)


def _get_buffers(texts: pl.Series) -> tuple[Any, Any]:
    """The offsets and bytes of a string column in Arrow's layout."""
    array = texts.fill_null("").rechunk().to_arrow()
    _, offsets, data = array.buffers()
    kind = np.int64 if str(array.type) == "large_string" else np.int32
    starts = np.frombuffer(offsets, kind)[array.offset : array.offset + len(array) + 1]
    return starts.astype(np.int64, copy=False), np.frombuffer(data or b"", np.uint8)
