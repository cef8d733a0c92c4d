"""The compiled part of duplicate search: from the bytes of texts to hashes, MinHash signatures and exact Jaccard.

The functions read the buffers of an Arrow string array and create no Python object per word, since tokenizing takes
most of the time of duplicate search. They make no decisions: the queries in `duplicates.py` choose which rows to
compare and which to keep. numba compiles them at first use and caches the result next to this file, or in the user's
cache folder if this one is read-only (`NUMBA_CACHE_DIR` changes it). Import it late: numba takes half a second.

Texts must be folded as in `folding.py`. The hashes are fixed, since stored states contain them: a change here that
changes a hash must raise `folding.HASH_VERSION`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

U64 = np.uint64

# Odd constants with well-mixed bits, from SplitMix64 (Steele, Lea and Flood 2014) and xxHash (Collet).
_GOLDEN, _MIX_A, _MIX_B = U64(0x9E3779B97F4A7C15), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
_WORD, _GRAM = U64(0xC2B2AE3D27D4EB4F), U64(0x165667B19E3779F9)
_S27, _S30, _S31, _S32, _S64 = U64(27), U64(30), U64(31), U64(32), U64(64)
_S6, _S20, _S42, _S63, _LOW22 = U64(6), U64(20), U64(42), U64(63), U64((1 << 22) - 1)  # for a bitmap of 2^22 bits
_ONE, _EIGHT, _ZERO = U64(1), U64(8), U64(0)


def _compile(function: Callable[..., Any]) -> Any:
    """Compile a function that releases the interpreter's lock, so that threads of one process share the work."""
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no cache folder is writable: compile again in each process
        return numba.njit(nogil=True, error_model="numpy")(function)


@_compile
def _mix_bits(h: Any) -> Any:
    """SplitMix64's finaliser: every bit of the result depends on every bit of `h`."""
    h = (h ^ (h >> _S30)) * _MIX_A
    h = (h ^ (h >> _S27)) * _MIX_B
    return h ^ (h >> _S31)


@_compile
def _read_character_class(data: Any, i: Any, end: Any, classes: Any) -> Any:
    """The class and the length in bytes of the character at `i`. Arrow strings are valid UTF-8."""
    b = data[i]
    if b < 0x80:
        return classes[b], 1
    if b < 0xE0:
        code, length = np.int64(b & 0x1F), 2
    elif b < 0xF0:
        code, length = np.int64(b & 0x0F), 3
    else:
        code, length = np.int64(b & 0x07), 4
    if i + length > end:
        return classes[0], 1
    for j in range(1, length):
        code = (code << 6) | np.int64(data[i + j] & 0x3F)
    if code < classes.size:
        return classes[code], length
    return np.uint8(0), length


@_compile
def _is_significant_mark(data: Any, i: Any, begin: Any, end: Any, lower: Any) -> Any:
    """Whether the mark at `i` is more than punctuation: part of a number, or a sign before a word."""
    if i + 1 >= end:
        return False
    mark, follows = data[i], data[i + 1]
    if 48 <= follows <= 57 and (mark == 44 or mark == 45 or mark == 46 or mark == 58):  # , - . :
        return True
    if (mark == 33 or mark == 45) and (lower[follows] > 2 or follows >= 0x80):  # ! -
        return i == begin or (lower[data[i - 1]] <= 2 and data[i - 1] < 0x80)
    return False


@_compile
def _hash_text(data: Any, begin: Any, end: Any, classes: Any, lower: Any, out: Any) -> Any:
    """Write the hashes of a text's words to `out`. Returns the number of words and a hash of the whole text.

    `lower` maps ASCII word characters to lower case, white space to 1, quiet marks to 2 and all else to 0. The hash of
    the whole text covers words and the characters between them. White space and quiet marks count as one space between
    words, and as nothing at both ends. In a text without words, quiet marks count as themselves.
    """
    count, whole = _hash_words(data, begin, end, classes, lower, True, out)
    if count == 0:
        count, whole = _hash_words(data, begin, end, classes, lower, False, out)
    return count, whole


@_compile
def _hash_words(data: Any, begin: Any, end: Any, classes: Any, lower: Any, quiet: Any, out: Any) -> Any:
    """As `_hash_text`. `quiet` says whether quiet marks count as white space."""
    count, i = 0, begin
    whole, gap = _GOLDEN, False
    while i < end:
        b = data[i]
        if lower[b] == 1 or (lower[b] == 2 and quiet and not _is_significant_mark(data, i, begin, end, lower)):
            gap = True
            i += 1
            continue
        if b >= 0x80:
            kind, size = _read_character_class(data, i, end, classes)
            if kind == 5 or (kind == 4 and quiet):
                gap = True
                i += size
                continue
        if gap and whole != _GOLDEN:
            whole = (whole ^ _ONE) * _WORD
            whole ^= whole >> _S32
        gap = False
        h, part, shift, first, size = _GOLDEN, _ZERO, _ZERO, i, 1
        while i < end:
            c = lower[data[i]]
            if c > 2:
                part |= U64(c) << shift
                shift += _EIGHT
                i += 1
                if shift == _S64:
                    h = (h ^ part) * _WORD
                    h ^= h >> _S32
                    part, shift = _ZERO, _ZERO
                continue
            if data[i] < 0x80:
                break
            kind, size = _read_character_class(data, i, end, classes)
            if kind == 0 or kind > 3 or (kind == 2 and i > first):
                break
            for j in range(size):
                part |= U64(data[i + j]) << shift
                shift += _EIGHT
                if shift == _S64:
                    h = (h ^ part) * _WORD
                    h ^= h >> _S32
                    part, shift = _ZERO, _ZERO
            i += size
            if kind == 2:
                break
        if i > first:
            h = _mix_bits(((h ^ part) * _WORD) ^ U64(i - first))
            out[count] = h
            count += 1
        else:
            h = _GRAM
            for j in range(size if b >= 0x80 else 1):
                h = (h ^ U64(data[i + j])) * _WORD
            i += size if b >= 0x80 else 1
        whole = (whole ^ h) * _WORD
        whole ^= whole >> _S32
    return count, _mix_bits(whole)


@_compile
def _hash_numbers(data: Any, begin: Any, end: Any, classes: Any) -> Any:
    """A hash of a text's numbers in order, with their minus, point, comma and slash; 0 for a text without numbers."""
    total, i, found = _ZERO, begin, False
    while i < end:
        kind, size = _read_character_class(data, i, end, classes)
        if kind != 3:
            i += size
            continue
        found = True
        h = _GOLDEN
        if i > begin and data[i - 1] == 45:  # minus
            h = _mix_bits(h ^ U64(45))
        while i < end:
            kind, size = _read_character_class(data, i, end, classes)
            if kind != 3:
                # A mark is part of the number if a digit follows it.
                if data[i] != 44 and data[i] != 46 and data[i] != 47:
                    break
                if i + 1 >= end:
                    break
                follows, _ = _read_character_class(data, i + 1, end, classes)
                if follows != 3:
                    break
            for j in range(size):
                h = _mix_bits(h ^ U64(data[i + j])) * _WORD
            i += size
        total = _mix_bits(total ^ h) * _GRAM
    return total | _ONE if found else _ZERO


@_compile
def _hash_ngrams(tokens: Any, count: Any, n: Any, out: Any) -> Any:
    """Write the hashes of all n-grams to `out`, return their number. A shorter text has one n-gram of all its words."""
    if count == 0:
        return 0
    width = min(n, count)
    for i in range(count - width + 1):
        h = _GOLDEN
        for j in range(width):
            h = (h ^ tokens[i + j]) * _GRAM
            h ^= h >> _S32
        out[i] = _mix_bits(h)
    return count - width + 1


@_compile
def find_non_ascii(data: Any, offsets: Any) -> Any:
    """A mask of the texts with characters beyond ASCII."""
    out = np.zeros(offsets.size - 1, np.bool_)
    for row in range(out.size):
        wide = np.uint8(0)
        for i in range(offsets[row], offsets[row + 1]):
            wide |= data[i]
        out[row] = wide >= 0x80
    return out


@_compile
def _find_longest(offsets: Any) -> Any:
    """The length in bytes of the longest text."""
    longest = 0
    for row in range(offsets.size - 1):
        longest = max(longest, offsets[row + 1] - offsets[row])
    return longest


@_compile
def compute_signatures(
    data: Any,
    offsets: Any,
    classes: Any,
    lower: Any,
    ngram: Any,
    seeds: Any,
    bands: Any,
    min_words: Any,
    keep_numbers: Any,
) -> Any:
    """For each text: the exact key, the number of words, a hash of its numbers, and a 32-bit key of each MinHash band.

    MinHash (Broder 1997) works on the set of word shingles, with one multiplication per hash function. A band's key is
    a hash of the minima of its functions (locality-sensitive hashing, Indyk and Motwani 1998). A text with fewer than
    `min_words` words, or without words, has 0 in all bands and must not be compared.
    """
    rows, functions = offsets.size - 1, seeds.shape[1]
    exact, words = np.empty(rows, np.uint64), np.zeros(rows, np.uint32)
    numbers, keys = np.zeros(rows, np.uint64), np.zeros((bands, rows), np.uint32)
    longest = _find_longest(offsets)
    tokens, grams = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.uint64)
    least = np.empty(functions, np.uint32)
    flip, factor = seeds[0], seeds[1]
    per_band = functions // bands
    for row in range(rows):
        begin, end = offsets[row], offsets[row + 1]
        count, exact[row] = _hash_text(data, begin, end, classes, lower, tokens)
        words[row] = count
        if keep_numbers:
            numbers[row] = _hash_numbers(data, begin, end, classes)
        if count < min_words or count == 0:
            continue
        found = _hash_ngrams(tokens, count, ngram, grams)
        for f in range(functions):
            least[f] = np.uint32(0xFFFFFFFF)
        for i in range(found):
            x = np.uint32(grams[i] >> _S32)
            for f in range(functions):
                value = np.uint32(np.uint32(x ^ flip[f]) * factor[f])
                least[f] = min(least[f], value)
        for band in range(bands):
            h = _GOLDEN + numbers[row]
            for f in range(band * per_band, (band + 1) * per_band):
                h = _mix_bits(h ^ U64(least[f]))
            keys[band, row] = np.uint32(h >> _S32)
    return exact, words, numbers, keys


@_compile
def compute_shingles(data: Any, offsets: Any, classes: Any, lower: Any, ngram: Any) -> Any:
    """The distinct shingles of all texts in one array, with the start and the number of those of each text."""
    rows = offsets.size - 1
    starts, sizes = np.zeros(rows, np.int64), np.zeros(rows, np.int32)
    longest = _find_longest(offsets)
    tokens, grams = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.uint64)
    capacity = 64
    while capacity < 2 * (longest + 1):
        capacity *= 2
    table, stamps = np.empty(capacity, np.uint64), np.full(capacity, -1, np.int64)
    values = np.empty(max(1024, data.size // 8), np.uint64)
    used = 0
    for row in range(rows):
        count, _ = _hash_text(data, offsets[row], offsets[row + 1], classes, lower, tokens)
        found = _hash_ngrams(tokens, count, ngram, grams)
        if used + found > values.size:
            more = np.empty(2 * values.size + found, np.uint64)
            more[:used] = values[:used]
            values = more
        starts[row] = used
        mask = 64
        while mask < 2 * found:
            mask *= 2
        mask -= 1
        for i in range(found):
            place = np.int64(grams[i]) & mask
            while stamps[place] == row and table[place] != grams[i]:
                place = (place + 1) & mask
            if stamps[place] != row:
                stamps[place], table[place] = row, grams[i]
                values[used] = grams[i]
                used += 1
        sizes[row] = used - starts[row]
    return values[:used].copy(), starts, sizes


@_compile
def count_common_shingles(values: Any, starts: Any, sizes: Any, left: Any, right: Any) -> Any:
    """The number of shingles that the texts of each pair share. It is fastest if equal left texts are adjacent."""
    largest = 1
    for size in sizes:
        largest = max(largest, size)
    capacity = 64
    while capacity < 2 * largest:
        capacity *= 2
    table, stamps = np.empty(capacity, np.uint64), np.full(capacity, -1, np.int64)
    out = np.zeros(left.size, np.int32)
    current, mask = np.int64(-1), np.int64(0)
    for pair in range(left.size):
        a, b = np.int64(left[pair]), np.int64(right[pair])
        if a != current:
            current = a
            mask = np.int64(64)
            while mask < 2 * sizes[a]:
                mask *= 2
            mask -= 1
            for i in range(starts[a], starts[a] + sizes[a]):
                place = np.int64(values[i]) & mask
                while stamps[place] == pair:
                    place = (place + 1) & mask
                stamps[place], table[place] = pair, values[i]
            stamp = pair
        shared = 0
        for i in range(starts[b], starts[b] + sizes[b]):
            place = np.int64(values[i]) & mask
            while stamps[place] == stamp:
                if table[place] == values[i]:
                    shared += 1
                    break
                place = (place + 1) & mask
        out[pair] = shared
    return out


@_compile
def build_ngram_table(known: Any, common_from: Any) -> Any:
    """An open-addressing table of n-gram hashes, and a Bloom filter of the n-grams before number `common_from`.

    Returns hashes and n-gram numbers by slot, and the bits of the filter, which answers most look-ups.
    """
    capacity = 1024
    while capacity < 2 * known.size:
        capacity *= 2
    table, index = np.zeros(capacity, np.uint64), np.full(capacity, -1, np.int32)
    bits = np.zeros(1 << 16, np.uint64)  # 512 KiB: stays in a core's cache
    for i in range(known.size):
        place = np.int64(known[i]) & (capacity - 1)
        while index[place] >= 0:
            place = (place + 1) & (capacity - 1)
        table[place], index[place] = known[i], i
        if i < common_from:
            for bit in (known[i] >> _S42, (known[i] >> _S20) & _LOW22):
                bits[bit >> _S6] |= _ONE << (bit & _S63)
    return table, index, bits


@_compile
def _may_contain(gram: Any, bits: Any) -> Any:
    """Look up a Bloom filter of two bits (Bloom 1970). With the n-grams of 15,000 items, 1 % of other n-grams pass."""
    one, other = gram >> _S42, (gram >> _S20) & _LOW22
    return (bits[one >> _S6] >> (one & _S63)) & (bits[other >> _S6] >> (other & _S63)) & _ONE


@_compile
def _find_ngram(gram: Any, table: Any, index: Any, last: Any) -> Any:
    """The number of an n-gram, or -1. `last` is the size of the table minus 1."""
    place = np.int64(gram) & last
    while index[place] >= 0 and table[place] != gram:
        place = (place + 1) & last
    return index[place]


@_compile
def find_overlaps(
    data: Any,
    offsets: Any,
    classes: Any,
    lower: Any,
    ngram: Any,
    table: Any,
    index: Any,
    bits: Any,
    common_from: Any,
) -> Any:
    """Find the known n-grams in each text.

    N-grams from number `common_from` on occur in too many items to be evidence, and are no hits. A text with fewer
    words than `ngram` has one n-gram of all its words.

    Returns:
        The row and the n-gram number of each hit, distinct per row. Then for each text: its exact key, its number of
        words, and, if it has a hit, its numbers of distinct rare and common n-grams.
    """
    rows = offsets.size - 1
    longest = _find_longest(offsets)
    tokens, grams = np.empty(longest + 1, np.uint64), np.empty(longest + 1, np.uint64)
    capacity = 64
    while capacity < 2 * (longest + 1):
        capacity *= 2
    seen, stamps = np.empty(capacity, np.uint64), np.full(capacity, -1, np.int64)
    exact, words = np.empty(rows, np.uint64), np.zeros(rows, np.uint32)
    rare, commons = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    hit_rows, hit_grams, hits = np.empty(1024, np.int32), np.empty(1024, np.int32), 0
    last = table.size - 1
    for row in range(rows):
        count, exact[row] = _hash_text(data, offsets[row], offsets[row + 1], classes, lower, tokens)
        words[row] = count
        found = _hash_ngrams(tokens, count, ngram, grams)
        known = False
        for i in range(found):
            if _may_contain(grams[i], bits) and _find_ngram(grams[i], table, index, last) >= 0:
                known = True
                break
        if not known:
            continue
        mask = 64
        while mask < 2 * found:
            mask *= 2
        mask -= 1
        for i in range(found):
            place = np.int64(grams[i]) & mask
            while stamps[place] == row and seen[place] != grams[i]:
                place = (place + 1) & mask
            if stamps[place] == row:
                continue
            stamps[place], seen[place] = row, grams[i]
            number = _find_ngram(grams[i], table, index, last)
            if number >= common_from:
                commons[row] += 1
                continue
            rare[row] += 1
            if number < 0:
                continue
            if hits == hit_rows.size:
                more_rows, more_grams = np.empty(2 * hits, np.int32), np.empty(2 * hits, np.int32)
                more_rows[:hits] = hit_rows
                more_grams[:hits] = hit_grams
                hit_rows, hit_grams = more_rows, more_grams
            hit_rows[hits], hit_grams[hits] = row, number
            hits += 1
    return hit_rows[:hits].copy(), hit_grams[:hits].copy(), exact, words, rare, commons
