"""Rows that contain golden or dev items: exact, as a near-duplicate, or with most of an item's n-grams.

Each pair of a row and an item is one hit, with its kind and overlap:

    exact        the same text, except for case, white space, punctuation and Unicode spelling
    near         verified Jaccard similarity of word shingles
    item_in_row  the share of the item's n-grams that are in the row: the row quotes the item
    row_in_item  the share of the row's n-grams that are in the item: the row is a part of the item

An item or row with fewer than 13 words must be contained as a whole, since half of its n-grams may be an everyday
phrase. Such a row must also be at least half of the item. An item or row with fewer than 5 words (`ngram`) is only
found if all its words are contained. The usual 13-grams (Brown et al. 2020) find none of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup import folding
from distill_dagster.curation.dedup.folding import MinHashScheme
from distill_dagster.curation.dedup.signatures import (
    Array,
    Shingles,
    fold_batch,
    get_buffers,
    map_in_threads,
    shingle_texts,
    sign_texts,
)
from distill_dagster.curation.dedup.text_rows import TextRows, TextSource, open_rows

HIT_KINDS = ("exact", "near", "item_in_row", "row_in_item")
"""A pair gets the first kind that applies."""
HIT_SCHEMA = pl.Schema({"id": pl.String, "golden_id": pl.String, "kind": pl.String, "overlap": pl.Float64})
OVERLAP_SCHEMA = pl.Schema(
    {"row": pl.UInt32, "item": pl.UInt32, "kind": pl.String, "overlap": pl.Float64, "maybe_near": pl.Boolean}
)
"""Pairs of rows and items. `kind` and `overlap` are null if a pair is neither exact nor contained."""
JOIN_ROWS = 131_072
"""Number of rows whose hits are joined to the items at once."""
MIN_SHARED_NGRAMS = 4
"""Number of n-grams that a row and an item must share, unless one contains the other as a whole."""


@dataclass(frozen=True)
class Contamination:
    """The leaks in a table of `height` rows.

    hits: `id` of the row, `golden_id`, `kind` and `overlap` (0 to 1), sorted by id, kind and golden id.
    """

    height: int
    hits: pl.DataFrame

    @property
    def ids(self) -> pl.Series:
        """The ids of the rows to drop, sorted."""
        return self.hits["id"].unique().sort()


@dataclass(frozen=True)
class _NgramIndex:
    """The n-grams of the golden items: first rare ones, then (from `common_from` on) those that many items share."""

    items: pl.DataFrame  # item, golden_id, item_words, item_rare, item_common
    exact: pl.DataFrame  # exact, item
    postings: pl.DataFrame  # gram, item
    table: tuple[Array, Array, Array]
    common_from: int
    shingles: Shingles


def find_contamination(
    source: TextSource,
    golden: TextSource,
    *,
    text: str | pl.Expr = "text",
    id: str | pl.Expr = "id",
    golden_text: str | pl.Expr = "text",
    golden_id: str | pl.Expr = "id",
    ngram: int = 5,
    min_overlap: float = 0.5,
    whole_below: int = 13,
    threshold: float = 0.7,
    scheme: MinHashScheme | None = None,
    limits: ResourceLimits | None = None,
) -> Contamination:
    """Find the rows of a table that leak golden or dev items. Compare user turns only, without template text.

    Args:
        source: the rows: a frame, a query or Parquet files, read in batches.
        golden: the items. All their n-grams are in memory, about 100 bytes per word.
        ngram: number of words in an n-gram.
        min_overlap: lowest share of an item's (or a row's) n-grams. N-grams of template text and stock phrases do not
            count: those that more than one in 20 items share (at least 3 and at most 10 items).
        whole_below: items and rows with fewer words must be contained as a whole.
        threshold: lowest Jaccard similarity of near-duplicates, by the shingles and `min_words` of the scheme.
            Candidates share a quarter of the n-grams of the smaller text; bands are not used. Rows whose words match
            an item but whose numbers differ are leaks too, even with `keep_numbers`.

    Raises:
        ValueError: a setting is out of range.
    """
    scheme, limits = scheme or MinHashScheme(), limits or ResourceLimits()
    if not 0 < min_overlap <= 1 or not 0 < threshold <= 1:
        raise ValueError("min_overlap and threshold must be above 0 and at most 1")
    if not 1 <= ngram <= 32 or whole_below < ngram:
        raise ValueError("ngram must be from 1 to 32, and whole_below at least ngram")
    id_ = pl.col(id) if isinstance(id, str) else id
    golden_id_ = pl.col(golden_id) if isinstance(golden_id, str) else golden_id
    with open_rows(golden, golden_text, [golden_id_.cast(pl.String).alias("golden_id")], limits) as items:
        index = _build_index(items, ngram, scheme, limits)
    with open_rows(source, text, [id_.cast(pl.String).alias("id")], limits) as rows:
        overlaps = _find_overlaps(rows, index, ngram, min_overlap, whole_below, scheme.min_words, limits)
        ids = rows.read_columns()["id"]
        near = _measure_similarity(overlaps.filter("maybe_near").select("row", "item"), rows, index, scheme, limits)
    near = near.filter(pl.col("similarity") >= threshold)
    near = near.select("row", "item", pl.lit("near").alias("kind"), pl.col("similarity").alias("overlap"))
    hits = pl.concat([overlaps.drop_nulls("kind").select("row", "item", "kind", "overlap"), near])
    hits = hits.with_columns(
        ids.gather(hits["row"]).alias("id"),
        index.items["golden_id"].gather(hits["item"]).alias("golden_id"),
        pl.col("kind").replace_strict(list(HIT_KINDS), range(len(HIT_KINDS)), return_dtype=pl.UInt8).alias("first"),
    )
    hits = hits.sort("id", "first", "golden_id").unique(["row", "item"], keep="first", maintain_order=True)
    return Contamination(ids.len(), hits.select(list(HIT_SCHEMA)))


def _build_index(items: TextRows, ngram: int, scheme: MinHashScheme, limits: ResourceLimits) -> _NgramIndex:
    """Index the n-grams, exact keys and shingles of the items."""
    from distill_dagster.curation.dedup import kernel

    signatures = sign_texts(items.iter_texts(), MinHashScheme(bands=1, rows_per_band=1, min_words=1), limits)
    grams = shingle_texts(items.iter_texts(), ngram, limits)
    item = np.repeat(np.arange(signatures.height, dtype=np.uint32), grams.sizes)
    postings = pl.DataFrame({"hash": grams.values, "item": item})
    # Items with equal texts count once for how common an n-gram is.
    firsts = pl.DataFrame({"exact": signatures.exact}).select(pl.col("exact").is_first_distinct())["exact"]
    most = min(max(int(firsts.to_numpy().sum()) // 20, 3), 10)
    counts = postings.filter(firsts.gather(postings["item"])).group_by("hash").len().sort(pl.col("len") > most, "hash")
    common_from = int((counts["len"] <= most).sum())
    postings = postings.join(counts.with_row_index("gram"), on="hash")
    rare = pl.col("len") <= most
    sizes = postings.group_by("item").agg(
        rare.sum().cast(pl.Int32).alias("item_rare"), (~rare).sum().cast(pl.Int32).alias("item_common")
    )
    item_columns = items.read_columns().with_row_index("item").with_columns(pl.Series("item_words", signatures.words))
    item_columns = item_columns.join(sizes, on="item", how="left", maintain_order="left")
    exact = pl.DataFrame({"exact": signatures.exact, "item": np.arange(signatures.height, dtype=np.uint32)})
    return _NgramIndex(
        item_columns,
        exact.filter(pl.Series(signatures.words) > 0),
        postings.filter(rare).select("gram", "item"),
        kernel.build_ngram_table(counts["hash"].to_numpy(), common_from),
        common_from,
        shingle_texts(items.iter_texts(), scheme.ngram, limits),
    )


def _find_overlaps(
    rows: TextRows,
    index: _NgramIndex,
    ngram: int,
    min_overlap: float,
    whole_below: int,
    min_words: int,
    limits: ResourceLimits,
) -> pl.DataFrame:
    """The pairs (`OVERLAP_SCHEMA`) of rows and items that share n-grams."""
    from distill_dagster.curation.dedup import kernel

    def find_in_batch(batch: Any) -> tuple[Array, ...]:
        data, offsets = get_buffers(fold_batch(batch))
        out: tuple[Array, ...] = kernel.find_overlaps(
            data,
            offsets,
            folding.build_character_classes(),
            folding.build_lowercase_table(),
            ngram,
            *index.table,
            index.common_from,
        )
        return out

    start = 0
    parts = [pl.DataFrame(schema=OVERLAP_SCHEMA)]
    for group in _group_batches(map_in_threads(find_in_batch, rows.iter_texts(), limits.threads)):
        pairs = _match_items(group, index, min_overlap, whole_below, min_words)
        parts.append(pairs.with_columns(pl.col("row") + pl.lit(start, pl.UInt32)))
        start += group[2].size
    return pl.concat(parts)


def _group_batches(batches: Iterator[tuple[Array, ...]]) -> Iterator[tuple[Array, ...]]:
    """Join the results of many batches into one, since each query over them reads the whole index."""
    group: list[tuple[Array, ...]] = []
    rows = 0
    for hit_rows, *others in batches:
        group.append((hit_rows.astype(np.uint32) + np.uint32(rows), *others))
        rows += others[1].size
        if rows >= JOIN_ROWS:
            yield tuple(np.concatenate(column) for column in zip(*group, strict=True))
            group, rows = [], 0
    if group:
        yield tuple(np.concatenate(column) for column in zip(*group, strict=True))


def _match_items(
    group: tuple[Array, ...], index: _NgramIndex, min_overlap: float, whole_below: int, min_words: int
) -> pl.DataFrame:
    """The pairs (`OVERLAP_SCHEMA`) of a group's rows with items."""
    hit_rows, hit_grams, exact, words, rare, common = group
    row_columns = pl.DataFrame(
        {"exact": exact, "row_words": words, "row_rare": rare, "row_common": common}
    ).with_row_index("row")
    same = row_columns.select("row", "exact").join(index.exact, on="exact")
    same = same.select(
        "row",
        "item",
        pl.lit("exact").alias("kind"),
        pl.lit(1.0).alias("overlap"),
        pl.lit(False).alias("maybe_near"),
    )
    hits = pl.DataFrame({"row": hit_rows, "gram": hit_grams.astype(np.uint32)})
    both = hits.join(index.postings, on="gram").group_by("row", "item").len("shared")
    both = both.join(row_columns.drop("exact"), on="row").join(index.items, on="item")
    both = both.with_columns(
        _share_expr("item", "row", min_overlap, whole_below).alias("item_in_row"),
        _share_expr("row", "item", min_overlap, whole_below).alias("row_in_item"),
    )
    contained = pl.when(pl.col("item_in_row").is_not_null()).then(pl.lit("item_in_row"))
    kind = contained.when(pl.col("row_in_item").is_not_null()).then(pl.lit("row_in_item"))
    near = 4 * pl.col("shared") >= pl.min_horizontal("row_rare", "item_rare")
    both = both.with_columns(
        kind.alias("kind"),
        pl.coalesce("item_in_row", "row_in_item").alias("overlap"),
        (near & (pl.min_horizontal("row_words", "item_words") >= min_words)).alias("maybe_near"),
    )
    both = both.filter(pl.col("kind").is_not_null() | pl.col("maybe_near")).select(list(OVERLAP_SCHEMA))
    return pl.concat([same, both])


def _share_expr(of: str, other: str, min_overlap: float, whole_below: int) -> pl.Expr:
    """The share of the item's or the row's n-grams that both contain; null if it is not enough for a leak."""
    rare, shared = pl.col(f"{of}_rare"), pl.col("shared")
    # All rare n-grams, and more than one if the rest of the text is template.
    whole = (shared == rare) & ((pl.col(f"{of}_common") == 0) | (shared > 1))
    if of == "row":  # many items contain a short row such as "How do I pay?"
        whole &= shared >= min_overlap * pl.col(f"{other}_rare") - 1e-9
    enough = (
        (pl.col(f"{of}_words") >= whole_below) & (shared >= min_overlap * rare - 1e-9) & (shared >= MIN_SHARED_NGRAMS)
    )
    return pl.when(whole | enough).then(shared / rare)


def _measure_similarity(
    pairs: pl.DataFrame, rows: TextRows, index: _NgramIndex, scheme: MinHashScheme, limits: ResourceLimits
) -> pl.DataFrame:
    """Add the exact Jaccard `similarity` to each pair."""
    pairs = pairs.sort("row", "item")
    parts = [pairs.clear().with_columns(pl.lit(None, pl.Float64).alias("similarity"))]
    for block in pairs.iter_slices(max(1, limits.verify_rows)):
        places = block["row"].unique().sort()
        row_shingles = shingle_texts(rows.iter_texts_at(places.to_numpy()), scheme.ngram, limits)
        joined = Shingles(
            np.concatenate([row_shingles.values, index.shingles.values]),
            np.concatenate([row_shingles.starts, index.shingles.starts + row_shingles.values.size]),
            np.concatenate([row_shingles.sizes, index.shingles.sizes]),
        )
        left = places.search_sorted(block["row"]).to_numpy().astype(np.int64)
        right = block["item"].to_numpy().astype(np.int64) + places.len()
        similarity = joined.compute_jaccard(left, right, limits.threads)
        block = block.with_columns(pl.Series("similarity", similarity))
        parts.append(block)
    return pl.concat(parts)
