"""Exact and near-duplicates of one table: candidate pairs, verified pairs, clusters and their representatives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup.folding import MinHashScheme
from distill_dagster.curation.dedup.signatures import Array, Signatures, map_in_threads, shingle_texts, sign_texts
from distill_dagster.curation.dedup.text_rows import TextRows, TextSource, open_rows

BUCKET_NEIGHBORS = 16
"""Each row of a bucket (rows that share a band's key) is compared with this number of rows that follow it. A bucket is
ordered by content. Up to 17 rows, all are compared with all. In a bucket of thousands, which a common phrase makes, the
work stays linear and equal rows stay linked."""
MAX_PENDING_PAIRS = 4_000_000
"""Candidate pairs in memory before they are merged with those of other bands."""
PAIR_SCHEMA = pl.Schema({"left": pl.UInt32, "right": pl.UInt32, "kind": pl.String, "similarity": pl.Float64})
"""Verified pairs of row places, `left` < `right`. `kind` is exact, near or semantic."""
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
    """The duplicates in a table of `height` rows.

    members: all rows in clusters of two or more, sorted by id (`MEMBER_SCHEMA`). `cluster_id` is the id of the
        cluster's representative, the only row with `kept`. `like` is the id of the most similar row, with `kind` and
        `similarity` (1 for exact).
    pairs: every verified pair: left, right (ids, left < right), kind, similarity.
    """

    height: int
    members: pl.DataFrame
    pairs: pl.DataFrame

    @property
    def rejected(self) -> pl.DataFrame:
        """The rows to drop."""
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
    """Find exact and near-duplicates by MinHash-LSH (Broder 1997; Leskovec, Rajaraman and Ullman, ch. 3).

    Near pairs are verified by the exact Jaccard similarity of their word shingles. The result does not depend on the
    order of the rows or the number of threads.

    Args:
        source: a frame, a query or Parquet files.
        text: the text to compare: the prompt, or prompt and answer in one text.
        id: a unique id of the row.
        order: the smallest row by these expressions represents a cluster, then the smallest id. Nulls come last.
            `[pl.col("teacher").is_not_null(), -pl.col("confidence")]` prefers people's answers, then high confidence.
        threshold: lowest Jaccard similarity of near-duplicates, above 0 and up to 1.

    Raises:
        ValueError: two duplicates have the same id, or the threshold is out of range.
    """
    scheme, limits = scheme or MinHashScheme(), limits or ResourceLimits()
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, not {threshold}")
    with open_rows(source, text, build_order_exprs(id, order), limits) as rows:
        signatures = sign_texts(rows.iter_texts(), scheme, limits)
        ranking = rows.read_columns()
        exact, left, right = find_candidates(signatures, ranking["id"], scheme, limits)
        del signatures
        pairs = pl.concat([exact, verify_pairs(rows, left, right, scheme, threshold, limits)])
    return cluster_pairs(pairs, ranking)


def build_order_exprs(id_: str | pl.Expr, order: Sequence[pl.Expr]) -> list[pl.Expr]:
    """The columns that decide which row represents a cluster: `id`, `order_0`, `order_1` and so on."""
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
    """All verified pairs of a table (`PAIR_SCHEMA`)."""
    signatures = replace(signatures, keys=list(signatures.keys))
    exact, left, right = find_candidates(signatures, ids, scheme, limits)
    return pl.concat([exact, verify_pairs(rows, left, right, scheme, threshold, limits)])


def find_candidates(
    signatures: Signatures, ids: pl.Series, scheme: MinHashScheme, limits: ResourceLimits
) -> tuple[pl.DataFrame, Array, Array]:
    """The exact pairs of a table (`PAIR_SCHEMA`), and the left and right places of the pairs that may be near.

    The keys leave `signatures` band by band, since they take more memory than anything else.
    """
    exact, first = find_exact_pairs(signatures.exact, ids)
    # Continue with one row per exact text, ordered by content, so that the result does not depend on the rows' order.
    places = first[np.argsort(signatures.exact[first])]
    places = places[signatures.words[places] >= np.uint32(max(scheme.min_words, 1))]
    bands = (signatures.keys.pop()[places] for _ in range(len(signatures.keys)))
    left, right = find_candidate_pairs(bands, limits.threads)
    left, right = places[left], places[right]
    if scheme.keep_numbers:
        same = signatures.numbers[left] == signatures.numbers[right]
        left, right = left[same], right[same]
    return exact, left, right


def find_exact_pairs(exact: Array, ids: pl.Series) -> tuple[pl.DataFrame, Array]:
    """The pairs of each repeated row with the first row (by id) of its text, and the places of all first rows."""
    frame = pl.DataFrame({"exact": exact}).with_row_index("place")
    repeated = frame.filter(pl.col("exact").is_duplicated())
    ranked = repeated.with_columns(ids.gather(repeated["place"]).alias("id")).sort("exact", "id", "place")
    ranked = ranked.with_columns(pl.col("place").first().over("exact").alias("first"))
    repeats = ranked.filter(pl.col("place") != pl.col("first"))
    is_first = np.ones(exact.size, np.bool_)
    is_first[repeats["place"].to_numpy()] = False
    return build_exact_pairs(repeats), np.flatnonzero(is_first)


def build_exact_pairs(repeats: pl.DataFrame) -> pl.DataFrame:
    """Exact pairs (`PAIR_SCHEMA`) of repeated rows: `place`, and the place of the `first` row with their text."""
    return repeats.select(
        pl.min_horizontal("first", "place").alias("left"),
        pl.max_horizontal("first", "place").alias("right"),
        pl.lit("exact").alias("kind"),
        pl.lit(1.0).alias("similarity"),
    ).cast(PAIR_SCHEMA)


def find_candidate_pairs(keys: Iterable[Array], threads: int = 1) -> tuple[Array, Array]:
    """The distinct pairs of places that share a key in any band, sorted, left < right."""
    pairs, pending = np.zeros(0, np.uint64), [np.zeros(0, np.uint64)]
    for band_pairs in map_in_threads(find_band_pairs, keys, threads):
        pending.append(band_pairs)
        if sum(part.size for part in pending) > MAX_PENDING_PAIRS:  # similar rows share keys in most bands
            pairs, pending = merge_pairs([pairs, *pending]), []
    pairs = merge_pairs([pairs, *pending])
    return (pairs >> np.uint64(32)).astype(np.int64), (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)


def merge_pairs(pairs: list[Array]) -> Array:
    """The distinct pairs, sorted. NumPy sorts plain numbers several times as fast as Polars sorts a frame."""
    merged = np.sort(np.concatenate(pairs))
    return merged[np.flatnonzero(np.diff(merged, prepend=np.uint64(0)))]  # no pair is 0, since left < right


def find_band_pairs(band: Array) -> Array:
    """Pairs of places with the same key, each as one number (`pair_bucket_neighbors`)."""
    entry = band.astype(np.uint64)
    entry <<= np.uint64(32)
    entry |= np.arange(band.size, dtype=np.uint64)
    entry.sort()
    place = entry.astype(np.uint32)
    entry >>= np.uint64(32)
    frame = pl.DataFrame({"key": entry.astype(np.uint32), "place": place})
    del entry
    key = pl.col("key")
    shared = frame.filter((key == key.shift(1)) | (key == key.shift(-1)))  # a bucket is a run of equal keys
    return pair_bucket_neighbors(shared["key"], shared["place"].cast(pl.UInt64)).to_numpy()


def pair_bucket_neighbors(key: pl.Series, place: pl.Series) -> pl.Series:
    """Pairs of places within `BUCKET_NEIGHBORS` of each other in a bucket, as left * 2^32 + right.

    Buckets are runs of equal keys.
    """
    parts = [pl.Series("pair", [], dtype=pl.UInt64)]
    for lag in range(1, BUCKET_NEIGHBORS + 1):
        pairs = (place.shift(lag) * 2**32 + place).filter(key == key.shift(lag)).rename("pair")
        if pairs.is_empty():
            break
        parts.append(pairs)
    return pl.concat(parts)


def verify_pairs(
    rows: TextRows, left: Array, right: Array, scheme: MinHashScheme, threshold: float, limits: ResourceLimits
) -> pl.DataFrame:
    """The pairs whose exact Jaccard similarity reaches the threshold. Only the texts of these rows are read again."""
    parts = [pl.DataFrame(schema=PAIR_SCHEMA)]
    start = 0
    while start < left.size:
        stop = _find_block_end(left, right, start, limits.verify_rows)
        a, b = left[start:stop], right[start:stop]
        places = np.unique(np.concatenate([a, b]))
        shingles = shingle_texts(rows.iter_texts_at(places), scheme.ngram, limits)
        jaccard = shingles.compute_jaccard(np.searchsorted(places, a), np.searchsorted(places, b), limits.threads)
        near = jaccard >= threshold
        low, high = np.minimum(a, b)[near], np.maximum(a, b)[near]
        columns = {"left": low.astype(np.uint32), "right": high.astype(np.uint32), "similarity": jaccard[near]}
        parts.append(pl.DataFrame(columns).select("left", "right", pl.lit("near").alias("kind"), "similarity"))
        start = stop
    return pl.concat(parts)


def _find_block_end(left: Array, right: Array, start: int, most: int) -> int:
    """The end of a block of pairs from `start` on with at most `most` distinct rows, but at least one pair."""
    stop = start + max(most // 2, 1)
    while stop < left.size:
        longer = slice(start, 2 * stop - start)
        if np.unique(np.concatenate([left[longer], right[longer]])).size > most:
            return stop
        stop = 2 * stop - start
    return left.size


def cluster_pairs(pairs: pl.DataFrame, ranking: pl.DataFrame) -> Duplicates:
    """Join verified pairs to clusters and choose a representative for each.

    Args:
        pairs: `PAIR_SCHEMA`, with places in `ranking`.
        ranking: the columns of `build_order_exprs` for each row.

    Raises:
        ValueError: two of the rows have the same id.
    """
    linked = pairs.select(pl.concat([pl.col("left"), pl.col("right")]).unique().sort().alias("place"))["place"]
    names = ranking[linked]
    if not names["id"].is_unique().all():
        repeated = names.filter(pl.col("id").is_duplicated())["id"].min()
        raise ValueError(f"Duplicate id: {repeated!r}. Make ids unique, for example with the slice and the teacher.")
    number = pl.DataFrame({"place": linked}).with_row_index("number")
    edges = (
        pairs.join(number.rename({"place": "left", "number": "a"}), on="left", maintain_order="left")
        .join(number.rename({"place": "right", "number": "b"}), on="right", maintain_order="left")
    )  # fmt: skip
    a, b = edges["a"], edges["b"]
    ranked = names.with_columns(find_components(a, b, linked.len()).alias("component"))
    ranked = ranked.sort("component", *list_order_columns(ranking), "id", nulls_last=True)
    ranked = ranked.with_columns(pl.col("id").first().over("component").alias("cluster_id"))
    ids = names["id"]
    of_ids = edges.select(ids.gather(a).alias("from"), ids.gather(b).alias("to"), "kind", "similarity")
    both = pl.concat(
        [of_ids, of_ids.select(pl.col("to").alias("from"), pl.col("from").alias("to"), "kind", "similarity")]
    )
    # The alphabetical order exact, near, semantic is also the order from strong to weak evidence.
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
    return Duplicates(ranking.height, members, named.sort("left", "right", "kind"))


def list_order_columns(ranking: pl.DataFrame) -> list[str]:
    """The columns `order_0`, `order_1` and so on, in numeric order."""
    names = [name for name in ranking.columns if name.startswith("order_")]
    return sorted(names, key=lambda name: int(name.removeprefix("order_")))


def find_components(left: pl.Series, right: pl.Series, nodes: int) -> pl.Series:
    """The connected component of each node, named by its smallest node. Union-find in rounds.

    In each round, every root moves below the smallest root that an edge joins it to. Then all nodes take the root of
    their root until nothing changes. A round removes at least half of the roots that still have edges.
    """
    root = pl.Series("root", np.arange(nodes, dtype=np.uint32))
    edges = pl.DataFrame({"a": left, "b": right})
    while not edges.is_empty():
        edges = edges.select(
            pl.min_horizontal("a", "b").alias("a"), pl.max_horizontal("a", "b").alias("b")
        ).unique()  # fmt: skip
        joined = edges.group_by("b").agg(pl.col("a").min())
        root = root.scatter(joined["b"], joined["a"])
        while not (parent := root.gather(root)).equals(root):
            root = parent
        edges = edges.select(root.gather(edges["a"]).alias("a"), root.gather(edges["b"]).alias("b"))
        edges = edges.filter(pl.col("a") != pl.col("b"))
    return root
