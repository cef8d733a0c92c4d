"""Run the kernel over batches of texts in threads: signatures of all rows, and shingles of selected rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pyarrow as pa

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup import folding
from distill_dagster.curation.dedup.folding import MinHashScheme

Array = np.ndarray[Any, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Signatures:
    """The signatures of a table, as arrays with one entry per row.

    exact: a 64-bit key that exact duplicates share.
    words: the number of words.
    numbers: a hash of the numbers in the text; 0 unless the scheme has `keep_numbers`.
    keys: one array of 32-bit keys per band; 0 where the row is too short to be compared.
    """

    exact: Array
    words: Array
    numbers: Array
    keys: list[Array]

    @property
    def height(self) -> int:
        return self.exact.size

    def to_frame(self, scheme: MinHashScheme) -> pl.DataFrame:
        columns = {"exact": self.exact, "words": self.words, "numbers": self.numbers}
        return pl.DataFrame(columns | dict(zip(scheme.key_columns, self.keys, strict=True)))


@dataclass(frozen=True)
class Shingles:
    """The distinct shingles of all rows in one array. Those of row i are the `sizes[i]` values from `starts[i]` on."""

    values: Array
    starts: Array
    sizes: Array

    def compute_jaccard(self, left: Array, right: Array, threads: int = 1) -> Array:
        """The exact Jaccard similarity of pairs of rows, float64. It is fastest if equal left rows are adjacent."""
        from distill_dagster.curation.dedup import kernel

        def compute_part(bounds: tuple[int, int]) -> Array:
            a, b = left[slice(*bounds)], right[slice(*bounds)]
            shared = kernel.count_common_shingles(self.values, self.starts, self.sizes, a, b).astype(np.float64)
            return shared / np.maximum(self.sizes[a].astype(np.float64) + self.sizes[b] - shared, 1.0)

        step = 65_536
        bounds = [(start, min(start + step, left.size)) for start in range(0, left.size, step)]
        parts = list(map_in_threads(compute_part, bounds, threads))
        return np.concatenate(parts) if parts else np.zeros(0)


def sign_texts(texts: Iterable[pa.LargeStringArray], scheme: MinHashScheme, limits: ResourceLimits) -> Signatures:
    """Compute the signatures of all texts, in order."""
    from distill_dagster.curation.dedup import kernel

    seeds = folding.build_minhash_seeds(scheme.bands * scheme.rows_per_band)

    def sign_batch(batch: pa.LargeStringArray) -> tuple[Any, ...]:  # three arrays, and a list with one per band
        def run(data: Array, offsets: Array) -> tuple[Array, ...]:
            return kernel.compute_signatures(
                data,
                offsets,
                folding.build_character_classes(),
                folding.build_lowercase_table(),
                scheme.ngram,
                seeds,
                scheme.bands,
                scheme.min_words,
                scheme.keep_numbers,
            )

        data, offsets = get_buffers(batch)
        out: tuple[Array, ...] = run(data, offsets)
        wide = np.flatnonzero(kernel.find_non_ascii(data, offsets))
        if wide.size:
            for whole, part in zip(out, run(*get_buffers(_fold_rows(batch, wide))), strict=True):
                whole[..., wide] = part
        # Each band has memory of its own: while all batches are joined band by band, it is given back.
        return *out[:3], [band.copy() for band in out[3]]

    parts = list(map_in_threads(sign_batch, texts, limits.threads))
    if not parts:
        nothing = np.zeros(0, np.uint64)
        return Signatures(nothing, nothing.astype(np.uint32), nothing, [nothing.astype(np.uint32)] * scheme.bands)
    exact, words, numbers = (np.concatenate([part[i] for part in parts]) for i in range(3))
    batches = [list(part[3]) for part in parts]  # of each batch, the keys of each band
    del parts
    keys = [np.concatenate([batch.pop() for batch in batches]) for _ in range(scheme.bands)]
    return Signatures(exact, words, numbers, keys[::-1])


def shingle_texts(texts: Iterable[pa.LargeStringArray], ngram: int, limits: ResourceLimits) -> Shingles:
    """Compute the shingles of all texts, in order."""
    from distill_dagster.curation.dedup import kernel

    def shingle_batch(batch: pa.LargeStringArray) -> tuple[Array, ...]:
        return tuple(
            kernel.compute_shingles(
                *get_buffers(fold_batch(batch)),
                folding.build_character_classes(),
                folding.build_lowercase_table(),
                ngram,
            ),
        )

    values, starts, sizes, used = [], [], [], 0
    for batch_values, batch_starts, batch_sizes in map_in_threads(shingle_batch, texts, limits.threads):
        values.append(batch_values)
        starts.append(batch_starts + used)
        sizes.append(batch_sizes)
        used += batch_values.size
    if not values:
        return Shingles(np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int32))
    return Shingles(np.concatenate(values), np.concatenate(starts), np.concatenate(sizes))


def fold_batch(batch: pa.LargeStringArray) -> pa.LargeStringArray:
    """Fold every text of a batch that is not plain ASCII. The kernel folds ASCII itself."""
    from distill_dagster.curation.dedup import kernel

    wide = np.flatnonzero(kernel.find_non_ascii(*get_buffers(batch)))
    if not wide.size:
        return batch
    order = np.arange(len(batch))
    order[wide] = len(batch) + np.arange(wide.size)
    return pa.chunked_array([batch, _fold_rows(batch, wide)]).take(pa.array(order)).combine_chunks()


def _fold_rows(batch: pa.LargeStringArray, places: Array) -> pa.LargeStringArray:
    return folding.fold_non_ascii(pl.Series("text", batch.take(pa.array(places)))).to_arrow().cast(pa.large_string())


def get_buffers(array: pa.LargeStringArray) -> tuple[Array, Array]:
    """The bytes of all texts and the offset of each text, without a copy."""
    _, offsets, data = array.buffers()
    places = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return (np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(1, np.uint8)), places


def map_in_threads(work: Callable[[Any], T], items: Iterable[Any], threads: int) -> Iterator[T]:
    """Apply a function to items in threads. Results come in order; about `threads` items are in memory at a time."""
    if threads <= 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[T]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
