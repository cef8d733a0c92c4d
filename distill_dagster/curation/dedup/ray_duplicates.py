"""Exact and near-duplicates of a large table by a Ray cluster, with the same pairs as `duplicates.find_duplicates`.

    1. Tasks sign batches of texts. The band keys, most of a signature, stay in the cluster.
    2. A Ray Data job groups the keys by band. Each group gives the candidate pairs of its band.
    3. Rows that candidate pairs join, directly or through others, get one part. A second job groups their texts by
       part. Each group verifies its pairs.

This process keeps 20 bytes of each row and the candidate pairs. Ray moves to disk what its object store cannot keep in
memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa

from distill_dagster.core.errors import DistillError
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.core.ray_workers import RayWorkers
from distill_dagster.curation.dedup.duplicates import (
    MAX_PENDING_PAIRS,
    PAIR_SCHEMA,
    Duplicates,
    build_order_exprs,
    cluster_pairs,
    find_band_pairs,
    find_components,
    find_exact_pairs,
    merge_pairs,
    verify_pairs,
)
from distill_dagster.curation.dedup.folding import MinHashScheme
from distill_dagster.curation.dedup.signatures import Array, sign_texts
from distill_dagster.curation.dedup.text_rows import TextRows, open_rows

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.data import Dataset

PART_ROWS = 50_000
"""Rows that are verified at a time, about."""
MOST_PARTS = 1_000
BLOCK_BYTES = 16 * 2**20
"""Size of a block of results, about. Ray Data reserves several, which a small object store has to hold."""
BATCH_BYTES = 4 * BLOCK_BYTES
"""Size of what a task divides into groups, about. With Ray Data's default of 1 GiB each task takes so much memory."""
_NOT_COMPARED = np.uint32(2**32 - 1)
_ONE_THREAD = ResourceLimits(threads=1)


def find_duplicates_on_ray(
    source: pl.LazyFrame,
    workers: RayWorkers,
    *,
    id: str = "id",
    scheme: MinHashScheme | None = None,
    threshold: float = 0.7,
    limits: ResourceLimits | None = None,
) -> Duplicates:
    """Find exact and near-duplicates of the column `text`, as `find_duplicates` does.

    Args:
        id: the column with the unique id of a row.
        limits: the folder that the texts are written to once, between the two times that they are read.

    Raises:
        DistillError: the cluster cannot be reached, or gave up a part.
        ValueError: two duplicates have the same id.
    """
    scheme, limits = scheme or MinHashScheme(), limits or ResourceLimits()
    workers.connect()
    unkept = ResourceLimits(limits.threads, memory_mb=0, spill=limits.spill)  # texts are not kept between two passes
    with open_rows(source, "text", build_order_exprs(id, ()), unkept) as rows:
        signed = list(workers.map_and_keep(partial(_sign_batch, scheme), _number_batches(rows.iter_texts())))
        if not signed:
            return cluster_pairs(pl.DataFrame(schema=PAIR_SCHEMA), rows.read_columns())
        columns = [np.concatenate(column) for column in zip(*(kept for kept, _ in signed), strict=True)]
        keys = [part for _, part in signed]
        del signed
        pairs = _find_all_pairs(rows, columns, keys, scheme, threshold)
        return cluster_pairs(pairs, rows.read_columns())


def _find_all_pairs(
    rows: TextRows,
    columns: list[Array],
    keys: list[ObjectRef[pa.Table]],
    scheme: MinHashScheme,
    threshold: float,
) -> pl.DataFrame:
    """All verified pairs (`PAIR_SCHEMA`), as `duplicates.find_pairs` finds them.

    Args:
        columns: `exact`, `words` and `numbers` of all rows.
        keys: the band keys of each batch.
    """
    exact_keys, words, numbers = columns
    exact, first = find_exact_pairs(exact_keys, rows.read_columns()["id"])
    places = first[np.argsort(exact_keys[first])]
    places = places[words[places] >= np.uint32(max(scheme.min_words, 1))]
    ranks = np.full(exact_keys.size, _NOT_COMPARED, np.uint32)
    ranks[places] = np.arange(places.size, dtype=np.uint32)
    pairs = _find_candidates(keys, ranks, scheme.bands)
    left = places[(pairs >> np.uint64(32)).astype(np.int64)]
    right = places[(pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)]
    if scheme.keep_numbers:
        same = numbers[left] == numbers[right]
        left, right = left[same], right[same]
    return pl.concat([exact, _verify(rows, left, right, exact_keys.size, scheme, threshold)])


def _number_batches(texts: Iterable[pa.LargeStringArray]) -> Iterator[tuple[int, pa.LargeStringArray]]:
    """Each batch with the place of its first row."""
    start = 0
    for batch in texts:
        yield start, batch
        start += len(batch)


def _sign_batch(scheme: MinHashScheme, numbered: tuple[int, pa.LargeStringArray]) -> tuple[tuple[Array, ...], pa.Table]:
    """`exact`, `words` and `numbers` of a batch, and its band keys: a row for each band."""
    start, texts = numbered
    signed = sign_texts([texts], scheme, _ONE_THREAD)
    keys = pa.table(
        {
            "band": pa.array(range(scheme.bands), pa.int32()),
            "start": pa.array([start] * scheme.bands, pa.int64()),
            "keys": pa.array([band.tobytes() for band in signed.keys], pa.large_binary()),
        }
    )
    return (signed.exact, signed.words, signed.numbers), keys


def _find_candidates(keys: list[ObjectRef[pa.Table]], ranks: Array, bands: int) -> Array:
    """The distinct pairs of ranks that share a key in any band, as left * 2^32 + right, sorted."""
    import ray

    grouped = _read_blocks(keys).groupby("band", num_partitions=bands)
    found = grouped.map_groups(partial(_pair_band, ray.put(ranks)), batch_format="pyarrow")
    pairs, pending = np.zeros(0, np.uint64), [np.zeros(0, np.uint64)]
    for table in _iter_tables(found):
        pending += [np.frombuffer(blob.as_py(), np.uint64) for blob in table["pairs"]]
        if sum(part.size for part in pending) > MAX_PENDING_PAIRS:
            pairs, pending = merge_pairs([pairs, *pending]), []
    return merge_pairs([pairs, *pending])


def _pair_band(ranks: ObjectRef[Array], band: pa.Table) -> pa.Table:
    """The pairs of one band, from the keys of all batches.

    Args:
        ranks: of each row its place in the order by content, or `_NOT_COMPARED`.
    """
    import ray

    rank = ray.get(ranks)
    blobs = band.sort_by("start")["keys"]
    keys = np.concatenate([np.frombuffer(blob.as_py(), np.uint32) for blob in blobs])
    compared = rank != _NOT_COMPARED
    by_rank = np.empty(int(compared.sum()), np.uint32)
    by_rank[rank[compared]] = keys[compared]
    return pa.table({"pairs": pa.array([find_band_pairs(by_rank).tobytes()], pa.large_binary())})


def _verify(
    rows: TextRows, left: Array, right: Array, height: int, scheme: MinHashScheme, threshold: float
) -> pl.DataFrame:
    """The pairs of places whose exact Jaccard similarity reaches the threshold (`PAIR_SCHEMA`)."""
    import ray

    parts = [pl.DataFrame(schema=PAIR_SCHEMA)]
    if not left.size:
        return parts[0]
    wanted = np.unique(np.concatenate([left, right]))
    count = min(MOST_PARTS, 1 + wanted.size // PART_ROWS)
    root = find_components(pl.Series(left.astype(np.uint32)), pl.Series(right.astype(np.uint32)), height)
    part_of = (root.hash(0).to_numpy() % np.uint64(count)).astype(np.int32)
    order = np.argsort(part_of[left], kind="stable")
    sent = ray.put((part_of[left][order], left[order], right[order]))
    texts = []
    for start, batch in _number_batches(rows.iter_texts()):
        first, last = np.searchsorted(wanted, [start, start + len(batch)])
        places = wanted[first:last]
        chosen = {"part": part_of[places], "place": places, "text": batch.take(pa.array(places - start))}
        texts += [ray.put(pa.table(chosen))] if places.size else []
    grouped = _read_blocks(texts).groupby("part", num_partitions=count)
    found = grouped.map_groups(partial(_verify_part, sent, scheme, threshold), batch_format="pyarrow")
    for table in _iter_tables(found):
        near = pl.DataFrame(pl.from_arrow(table))
        parts.append(near.select("left", "right", pl.lit("near").alias("kind"), "similarity").cast(PAIR_SCHEMA))
    return pl.concat(parts)


def _verify_part(
    pairs: ObjectRef[tuple[Array, Array, Array]], scheme: MinHashScheme, threshold: float, texts: pa.Table
) -> pa.Table:
    """The verified pairs of one part: `left`, `right` and `similarity`."""
    import ray

    frame = pl.DataFrame(pl.from_arrow(texts)).sort("place")
    places = frame["place"].to_numpy()
    part, left, right = ray.get(pairs)
    first, last = np.searchsorted(part, [frame["part"][0], frame["part"][0] + 1])
    a, b = (np.searchsorted(places, side[first:last]) for side in (left, right))
    found = verify_pairs(TextRows(frame, "text", [], _ONE_THREAD), a, b, scheme, threshold, _ONE_THREAD)
    own = frame["place"].cast(pl.UInt32)
    return pa.table(
        {
            "left": own.gather(found["left"]).to_arrow(),
            "right": own.gather(found["right"]).to_arrow(),
            "similarity": found["similarity"].to_arrow(),
        }
    )


def _read_blocks(tables: list[Any]) -> Dataset:
    """A Ray dataset of tables in the cluster."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    context.shuffle_input_batch_bytes = BATCH_BYTES
    return ray.data.from_arrow_refs(tables)


def _iter_tables(found: Dataset) -> Iterator[pa.Table]:
    """The blocks of a dataset, each as soon as it is computed.

    Raises:
        DistillError: Ray gave up a part.
    """
    from ray.exceptions import RayError

    try:
        yield from found.iter_batches(batch_size=None, batch_format="pyarrow")
    except RayError as error:
        raise DistillError(f"Ray gave up a part of the comparison of texts: {error}") from error
