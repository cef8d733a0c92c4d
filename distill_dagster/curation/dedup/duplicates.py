"""Duplicates of one table: candidate pairs, verified pairs, clusters and who stands for each, as Polars queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup.folding import MinHashScheme
from distill_dagster.curation.dedup.signatures import Signatures, map_in_threads, shingle_texts, sign_texts
from distill_dagster.curation.dedup.text_rows import TextRows, TextSource, open_rows

Array = np.ndarray[Any, Any]
BUCKET_NEIGHBORS = 16
"""Rows of one bucket (a band's key) are each compared with so many that follow in the bucket's order, which is by
content. Up to 17 rows that is all with all; in a hot bucket of thousands, as common phrases make, the work stays linear
and equal rows stay linked."""
MAX_PENDING_PAIRS = 4_000_000
"""Candidate pairs that wait to be merged with those of other bands."""
PAIR_SCHEMA = pl.Schema({"left": pl.UInt32, "right": pl.UInt32, "kind": pl.String, "similarity": pl.Float64})
"""Verified pairs of places; `left` < `right`. `kind` is exact, near or semantic."""
MEMBER_SCHEMA = pl.Schema(
    {
        "id": pl.String,
        "cluster_id": pl.String,
        "kept": pl.Boolean,
        "kind": pl.String,
        "like": pl.String,
        "similarity": pl.Float64,
    }
)


@dataclass(frozen=True)
class Duplicates:
    """What was found in a table of `height` rows.

    members: one row for each row in a cluster of two or more, sorted by id. `cluster_id` is the id of the row that
        stands for the cluster, which alone is `kept`. `like` is the most similar row that this one was verified
        against, with `kind` and `similarity` (1 for exact).
    pairs: every verified pair: left, right (ids, left < right), kind, similarity.
    """

    height: int
    members: pl.DataFrame
    pairs: pl.DataFrame

    @property
    def rejected(self) -> pl.DataFrame:
        """The rows to leave out."""
        return self.members.filter(~pl.col("kept"))


def find_duplicates(
    source: TextSource,
    *,
    text: str | pl.Expr = "text",
    id: str | pl.Expr = "id",
    order: Sequence[pl.Expr] = (),
    scheme: MinHashScheme | None = None,
    threshold: float = 0.7,
    limits: ResourceLimits | None = None,
) -> Duplicates:
    """Exact and near-duplicates by MinHash-LSH (Broder 1997; Leskovec, Rajaraman and Ullman, ch. 3), each near pair
    verified by the exact Jaccard similarity of word shingles. The same whatever the order of the rows or the threads.

    Args:
        source: a frame, a query or Parquet files.
        text: what is compared: the prompt, or prompt and answer in one text.
        id: unique in the source (`ValueError` where two duplicates share one).
        order: whose smallest row stands for a cluster: `[pl.col("teacher").is_not_null(), -pl.col("confidence")]` for
            people's answers first, then the surest. Nulls come last, and the id decides what is left.
        threshold: least Jaccard similarity of near-duplicates, above 0.
    """
    scheme, limits = scheme or MinHashScheme(), limits or ResourceLimits()
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold is a similarity above 0 and up to 1, not {threshold}")
    with open_rows(source, text, build_order_exprs(id, order), limits) as rows:
        signatures = sign_texts(rows.texts(), scheme, limits)
        facts = rows.facts()
        pairs = find_pairs(rows, signatures, facts["id"], scheme, threshold, limits)
    return cluster_pairs(pairs, facts)


def build_order_exprs(id_: str | pl.Expr, order: Sequence[pl.Expr]) -> list[pl.Expr]:
    """The columns that decide who stands for a cluster."""
    id_ = pl.col(id_) if isinstance(id_, str) else id_
    ranks = [rank.alias(f"order_{n}") for n, rank in enumerate(order)]
    return [id_.cast(pl.String).alias("id"), *ranks]


def find_pairs(
    rows: TextRows,
    signatures: Signatures,
    ids: pl.Series,
    scheme: MinHashScheme,
    threshold: float,
    limits: ResourceLimits,
) -> pl.DataFrame:
    """All verified pairs of a table, schema PAIRS."""
    exact, first = find_exact_pairs(signatures.exact, ids)
    # One row of each exact text goes on, in the order of content: what follows does not depend on the rows' order.
    places = first[np.argsort(signatures.exact[first])]
    places = places[signatures.words[places] >= np.uint32(max(scheme.min_words, 1))]
    left, right = find_candidate_pairs([keys[places] for keys in signatures.keys], limits.threads)
    left, right = places[left], places[right]
    if scheme.keep_numbers:
        same = signatures.numbers[left] == signatures.numbers[right]
        left, right = left[same], right[same]
    return pl.concat([exact, verify_pairs(rows, left, right, scheme, threshold, limits)])


def find_exact_pairs(exact: Array, ids: pl.Series) -> tuple[pl.DataFrame, Array]:
    """Each repeated row with the first (by id) of its text, and the places of all first rows."""
    frame = pl.DataFrame({"exact": exact}).with_row_index("place")
    repeated = frame.filter(pl.col("exact").is_duplicated())
    ranked = repeated.with_columns(ids.gather(repeated["place"]).alias("id")).sort("exact", "id", "place")
    ranked = ranked.with_columns(pl.col("place").first().over("exact").alias("first"))
    more = ranked.filter(pl.col("place") != pl.col("first"))
    stays = np.ones(exact.size, np.bool_)
    stays[more["place"].to_numpy()] = False
    return build_exact_pairs(more), np.flatnonzero(stays)


def build_exact_pairs(repeats: pl.DataFrame) -> pl.DataFrame:
    """Exact pairs (schema PAIRS) of repeated rows, by `place`, with the `first` of their text."""
    return repeats.select(
        pl.min_horizontal("first", "place").alias("left"),
        pl.max_horizontal("first", "place").alias("right"),
        pl.lit("exact").alias("kind"),
        pl.lit(1.0).alias("similarity"),
    ).cast(PAIR_SCHEMA)


def find_candidate_pairs(keys: Sequence[Array], threads: int = 1) -> tuple[Array, Array]:
    """Pairs of places that share a key in some band, each once, sorted, left < right."""
    pairs, waiting = np.zeros(0, np.uint64), [np.zeros(0, np.uint64)]
    for found in map_in_threads(_find_band_pairs, keys, threads):
        waiting.append(found)
        if sum(one.size for one in waiting) > MAX_PENDING_PAIRS:  # rows that are alike meet in most bands
            pairs, waiting = _merge_pairs([pairs, *waiting]), []
    pairs = _merge_pairs([pairs, *waiting])
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


def _merge_pairs(pairs: list[Array]) -> Array:
    """Each pair once, sorted. NumPy's sort of plain numbers is several times as quick as that of a frame."""
    merged = np.sort(np.concatenate(pairs))
    return merged[np.flatnonzero(np.diff(merged, prepend=np.uint64(0)))]  # no pair is 0: left < right


def _find_band_pairs(band: Array) -> Array:
    """Pairs of places with one key, both in one number."""
    entry = np.sort((band.astype(np.uint64) << np.uint64(32)) | np.arange(band.size, dtype=np.uint64))
    frame = pl.DataFrame({"key": (entry >> np.uint64(32)).astype(np.uint32), "place": entry.astype(np.uint32)})
    key = pl.col("key")
    shared = frame.filter((key == key.shift(1)) | (key == key.shift(-1)))  # a bucket is a run, in the order of places
    return pair_bucket_neighbors(shared["key"], shared["place"].cast(pl.UInt64)).to_numpy()


def pair_bucket_neighbors(key: pl.Series, place: pl.Series) -> pl.Series:
    """Pairs left * 2^32 + right of places that follow each other in a bucket. Buckets are runs of equal keys."""
    found = [pl.Series("pair", [], dtype=pl.UInt64)]
    for lag in range(1, BUCKET_NEIGHBORS + 1):
        pairs = (place.shift(lag) * 2**32 + place).filter(key == key.shift(lag)).rename("pair")
        if pairs.is_empty():
            break
        found.append(pairs)
    return pl.concat(found)


def verify_pairs(
    rows: TextRows, left: Array, right: Array, scheme: MinHashScheme, threshold: float, limits: ResourceLimits
) -> pl.DataFrame:
    """The pairs whose exact Jaccard similarity reaches the threshold. Texts are read again, and only these rows'."""
    parts = [pl.DataFrame(schema=PAIR_SCHEMA)]
    start = 0
    while start < left.size:
        stop = _find_block_end(left, right, start, limits.verify_rows)
        a, b = left[start:stop], right[start:stop]
        places = np.unique(np.concatenate([a, b]))
        found = shingle_texts(rows.texts_at(places), scheme.ngram, limits)
        jaccard = found.jaccard(np.searchsorted(places, a), np.searchsorted(places, b), limits.threads)
        near = jaccard >= threshold
        low, high = np.minimum(a, b)[near], np.maximum(a, b)[near]
        columns = {"left": low.astype(np.uint32), "right": high.astype(np.uint32), "similarity": jaccard[near]}
        parts.append(pl.DataFrame(columns).select("left", "right", pl.lit("near").alias("kind"), "similarity"))
        start = stop
    return pl.concat(parts)


def _find_block_end(left: Array, right: Array, start: int, most: int) -> int:
    """Where a block of pairs from `start` on ends that has at most so many rows; it has one pair at least."""
    if 2 * (left.size - start) <= most:
        return left.size
    stop = left.size
    while stop - start > 1 and np.unique(np.concatenate([left[start:stop], right[start:stop]])).size > most:
        stop = start + (stop - start) // 2
    return stop


def cluster_pairs(pairs: pl.DataFrame, facts: pl.DataFrame) -> Duplicates:
    """Clusters of verified pairs, and of each the row that stands for it.

    Args:
        pairs: schema PAIRS, of places in `facts`.
        facts: `id` and the columns `order_0`, `order_1` and so on of each row.

    Raises:
        ValueError: two of the rows have the same id.
    """
    linked = pairs.select(pl.concat([pl.col("left"), pl.col("right")]).unique().sort().alias("place"))["place"]
    names = facts[linked]
    if not names["id"].is_unique().all():
        twice = names.filter(pl.col("id").is_duplicated())["id"].min()
        raise ValueError(f"id is not unique: {twice!r} stands more than once. Join it with the slice and the teacher.")
    number = pl.DataFrame({"place": linked}).with_row_index("number")
    edges = (
        pairs.join(number.rename({"place": "left", "number": "a"}), on="left", maintain_order="left")
        .join(number.rename({"place": "right", "number": "b"}), on="right", maintain_order="left")
    )  # fmt: skip
    a, b = edges["a"], edges["b"]
    ranked = names.with_columns(find_components(a, b, linked.len()).alias("component"))
    ranked = ranked.sort("component", *list_order_columns(facts), "id", nulls_last=True)
    ranked = ranked.with_columns(pl.col("id").first().over("component").alias("cluster_id"))
    ids = names["id"]
    of_ids = edges.select(ids.gather(a).alias("from"), ids.gather(b).alias("to"), "kind", "similarity")
    both = pl.concat(
        [of_ids, of_ids.select(pl.col("to").alias("from"), pl.col("from").alias("to"), "kind", "similarity")]
    )
    # exact, near, semantic: in the order of the alphabet, and of how much they say
    best = both.sort("from", "kind", -pl.col("similarity"), "to").group_by("from", maintain_order=True).first()
    members = (
        ranked.join(best.rename({"from": "id", "to": "like"}), on="id", how="left")
        .with_columns((pl.col("id") == pl.col("cluster_id")).alias("kept"))
        .select(list(MEMBER_SCHEMA)).sort("id")
    )  # fmt: skip
    named = of_ids.select(
        pl.min_horizontal("from", "to").alias("left"),
        pl.max_horizontal("from", "to").alias("right"),
        "kind",
        "similarity",
    )
    return Duplicates(facts.height, members, named.sort("left", "right", "kind"))


def list_order_columns(facts: pl.DataFrame) -> list[str]:
    names = [name for name in facts.columns if name.startswith("order_")]
    return sorted(names, key=lambda name: int(name.removeprefix("order_")))


def find_components(left: pl.Series, right: pl.Series, nodes: int) -> pl.Series:
    """The connected component of each node, by its smallest node: union-find in rounds.

    In each round every root that an edge joins to a smaller one goes below the smallest of these, then all nodes take
    the root of their root until nothing moves. At least half of the roots that still have edges go away in a round.
    """
    root = pl.Series("root", np.arange(nodes, dtype=np.uint32))
    edges = pl.DataFrame({"a": left, "b": right})
    while not edges.is_empty():
        edges = edges.select(
            pl.min_horizontal("a", "b").alias("a"), pl.max_horizontal("a", "b").alias("b")
        ).unique()  # fmt: skip
        hooked = edges.group_by("b").agg(pl.col("a").min())
        root = root.scatter(hooked["b"], hooked["a"])
        while not (above := root.gather(root)).equals(root):
            root = above
        edges = edges.select(root.gather(edges["a"]).alias("a"), root.gather(edges["b"]).alias("b"))
        edges = edges.filter(pl.col("a") != pl.col("b"))
    return root
