"""Rows that hold what students are scored on: exact, near-duplicate, or most of an item's n-grams.

Each pair of row and golden item is one hit, with what was found and how much:

    exact        the same text, but for case, white space, quiet marks and spelling of characters
    near         Jaccard similarity of word shingles, verified
    item_in_row  the share of the item's n-grams that the row holds: the item was quoted
    row_in_item  the share of the row's n-grams that the item holds: a part of the item was taken

An item or row under 13 words has to be contained as a whole, since half of so few n-grams is an everyday phrase, and
such a row has to be half of the item besides. One under 5 words (n) is found only as the same words. The usual 13-grams
(Brown et al. 2020) see none of these.
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
    Shingles,
    fold_batch,
    get_buffers,
    map_in_threads,
    shingle_texts,
    sign_texts,
)
from distill_dagster.curation.dedup.text_rows import TextRows, TextSource, open_rows

Array = np.ndarray[Any, Any]
HIT_KINDS = ("exact", "near", "item_in_row", "row_in_item")
"""A pair is named by the first that holds."""
HIT_SCHEMA = pl.Schema({"id": pl.String, "golden_id": pl.String, "kind": pl.String, "overlap": pl.Float64})
OVERLAP_SCHEMA = pl.Schema(
    {"row": pl.UInt32, "item": pl.UInt32, "kind": pl.String, "overlap": pl.Float64, "maybe_near": pl.Boolean}
)
"""`kind` and `overlap` are null where a pair is neither exact nor contained."""
JOIN_ROWS = 131_072
"""Rows whose hits are joined to the items at a time."""
MIN_SHARED_NGRAMS = 4
"""n-grams that a row and an item must share at least, unless one contains the other as a whole."""


@dataclass(frozen=True)
class Contamination:
    """Each hit: `id` of the row, `golden_id`, `kind`, `overlap` (from 0 to 1); sorted by id, kind and golden id."""

    height: int
    hits: pl.DataFrame

    @property
    def ids(self) -> pl.Series:
        """Of the rows to leave out, sorted."""
        return self.hits["id"].unique().sort()


@dataclass(frozen=True)
class _NgramIndex:
    """The golden items' n-grams: the telling ones numbered first, then those that stand in too many items."""

    facts: pl.DataFrame  # item, golden_id, item_words, item_telling, item_commons
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
    """Find the rows of a table that leak golden (or dev) items. Compare user turns only, without template text.

    Args:
        source, golden: frames, queries or Parquet files. All of golden's n-grams are held in memory, about 100 bytes a
            word; rows are read in batches.
        min_overlap: share of an item's (or a row's) n-grams. N-grams that more than one in 20 items share (and more
            than 3 items; at most 10) are a template or stock phrase and count for nothing.
        whole_below: items and rows with fewer words count only if they are contained as a whole.
        threshold: least Jaccard similarity of near-duplicates, of the scheme's shingles and `min_words`. Candidates are
            pairs that share a quarter of the n-grams of the smaller of both; no bands are needed. A row of an item's
            words with other numbers is a leak too, whatever the scheme says of numbers.
    """
    scheme, limits = scheme or MinHashScheme(), limits or ResourceLimits()
    if not 0 < min_overlap <= 1 or not 0 < threshold <= 1:
        raise ValueError("min_overlap and threshold are shares above 0 and up to 1")
    if not 1 <= ngram <= 32 or whole_below < ngram:
        raise ValueError("ngram is a number of words from 1 to 32, whole_below no less than that")
    id_ = pl.col(id) if isinstance(id, str) else id
    golden_id_ = pl.col(golden_id) if isinstance(golden_id, str) else golden_id
    with open_rows(golden, golden_text, [golden_id_.cast(pl.String).alias("golden_id")], limits) as items:
        index = _build_index(items, ngram, scheme, limits)
    with open_rows(source, text, [id_.cast(pl.String).alias("id")], limits) as rows:
        found = _find_overlaps(rows, index, ngram, min_overlap, whole_below, scheme.min_words, limits)
        ids = rows.facts()["id"]
        near = _measure_similarity(found.filter("maybe_near").select("row", "item"), rows, index, scheme, limits)
    near = near.filter(pl.col("similarity") >= threshold)
    near = near.select("row", "item", pl.lit("near").alias("kind"), pl.col("similarity").alias("overlap"))
    hits = pl.concat([found.drop_nulls("kind").select("row", "item", "kind", "overlap"), near])
    hits = hits.with_columns(
        ids.gather(hits["row"]).alias("id"),
        index.facts["golden_id"].gather(hits["item"]).alias("golden_id"),
        pl.col("kind").replace_strict(list(HIT_KINDS), range(len(HIT_KINDS)), return_dtype=pl.UInt8).alias("first"),
    )
    hits = hits.sort("id", "first", "golden_id").unique(["row", "item"], keep="first", maintain_order=True)
    return Contamination(ids.len(), hits.select(list(HIT_SCHEMA)))


def _build_index(items: TextRows, ngram: int, scheme: MinHashScheme, limits: ResourceLimits) -> _NgramIndex:
    from distill_dagster.curation.dedup import kernel

    signatures = sign_texts(items.texts(), MinHashScheme(bands=1, rows_per_band=1, min_words=1), limits)
    grams = shingle_texts(items.texts(), ngram, limits)
    item = np.repeat(np.arange(signatures.height, dtype=np.uint32), grams.sizes)
    postings = pl.DataFrame({"hash": grams.values, "item": item})
    # Items that say the same are one when it comes to how common an n-gram is.
    firsts = pl.DataFrame({"exact": signatures.exact}).select(pl.col("exact").is_first_distinct())["exact"]
    most = min(max(int(firsts.to_numpy().sum()) // 20, 3), 10)
    counts = postings.filter(firsts.gather(postings["item"])).group_by("hash").len().sort(pl.col("len") > most, "hash")
    common_from = int((counts["len"] <= most).sum())
    postings = postings.join(counts.with_row_index("gram"), on="hash")
    telling = pl.col("len") <= most
    sizes = postings.group_by("item").agg(
        telling.sum().cast(pl.Int32).alias("item_telling"), (~telling).sum().cast(pl.Int32).alias("item_commons")
    )
    facts = items.facts().with_row_index("item").with_columns(pl.Series("item_words", signatures.words))
    facts = facts.join(sizes, on="item", how="left", maintain_order="left")
    exact = pl.DataFrame({"exact": signatures.exact, "item": np.arange(signatures.height, dtype=np.uint32)})
    return _NgramIndex(
        facts,
        exact.filter(pl.Series(signatures.words) > 0),
        postings.filter(telling).select("gram", "item"),
        kernel.build_ngram_table(counts["hash"].to_numpy(), common_from),
        common_from,
        shingle_texts(items.texts(), scheme.ngram, limits),
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
    """Pairs (schema PAIRS) of rows and items."""
    from distill_dagster.curation.dedup import kernel

    def hit(batch: Any) -> tuple[Array, ...]:
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
    found = [pl.DataFrame(schema=OVERLAP_SCHEMA)]
    for group in _group_batches(map_in_threads(hit, rows.texts(), limits.threads)):
        pairs = _match_items(group, index, min_overlap, whole_below, min_words)
        found.append(pairs.with_columns(pl.col("row") + pl.lit(start, pl.UInt32)))
        start += group[2].size
    return pl.concat(found)


def _group_batches(batches: Iterator[tuple[Array, ...]]) -> Iterator[tuple[Array, ...]]:
    """What the kernel found in many batches, as in one: each query over it looks at the whole index."""
    held: list[tuple[Array, ...]] = []
    rows = 0
    for hit_rows, *others in batches:
        held.append((hit_rows.astype(np.uint32) + np.uint32(rows), *others))
        rows += others[1].size
        if rows >= JOIN_ROWS:
            yield tuple(np.concatenate(column) for column in zip(*held, strict=True))
            held, rows = [], 0
    if held:
        yield tuple(np.concatenate(column) for column in zip(*held, strict=True))


def _match_items(
    group: tuple[Array, ...], index: _NgramIndex, min_overlap: float, whole_below: int, min_words: int
) -> pl.DataFrame:
    """Pairs (schema PAIRS) of a group's rows with items."""
    hit_rows, hit_grams, exact, words, telling, commons = group
    facts = pl.DataFrame(
        {"exact": exact, "row_words": words, "row_telling": telling, "row_commons": commons}
    ).with_row_index("row")
    same = facts.select("row", "exact").join(index.exact, on="exact")
    same = same.select(
        "row",
        "item",
        pl.lit("exact").alias("kind"),
        pl.lit(1.0).alias("overlap"),
        pl.lit(False).alias("maybe_near"),
    )
    hits = pl.DataFrame({"row": hit_rows, "gram": hit_grams.astype(np.uint32)})
    both = hits.join(index.postings, on="gram").group_by("row", "item").len("shared")
    both = both.join(facts.drop("exact"), on="row").join(index.facts, on="item")
    both = both.with_columns(
        _share_expr("item", "row", min_overlap, whole_below).alias("item_in_row"),
        _share_expr("row", "item", min_overlap, whole_below).alias("row_in_item"),
    )
    contained = pl.when(pl.col("item_in_row").is_not_null()).then(pl.lit("item_in_row"))
    kind = contained.when(pl.col("row_in_item").is_not_null()).then(pl.lit("row_in_item"))
    near = 4 * pl.col("shared") >= pl.min_horizontal("row_telling", "item_telling")
    both = both.with_columns(
        kind.alias("kind"),
        pl.coalesce("item_in_row", "row_in_item").alias("overlap"),
        (near & (pl.min_horizontal("row_words", "item_words") >= min_words)).alias("maybe_near"),
    )
    both = both.filter(pl.col("kind").is_not_null() | pl.col("maybe_near")).select(list(OVERLAP_SCHEMA))
    return pl.concat([same, both])


def _share_expr(of: str, other: str, min_overlap: float, whole_below: int) -> pl.Expr:
    """The share of the item's or the row's n-grams that both hold, where it says enough, else null."""
    telling, shared = pl.col(f"{of}_telling"), pl.col("shared")
    # All that is telling of it, and more than a single n-gram where the rest is template.
    whole = (shared == telling) & ((pl.col(f"{of}_commons") == 0) | (shared > 1))
    if of == "row":  # a short row such as "How do I pay?" is in many an item
        whole &= shared >= min_overlap * pl.col(f"{other}_telling") - 1e-9
    enough = (
        (pl.col(f"{of}_words") >= whole_below)
        & (shared >= min_overlap * telling - 1e-9)
        & (shared >= MIN_SHARED_NGRAMS)
    )
    return pl.when(whole | enough).then(shared / telling)


def _measure_similarity(
    pairs: pl.DataFrame, rows: TextRows, index: _NgramIndex, scheme: MinHashScheme, limits: ResourceLimits
) -> pl.DataFrame:
    """The pairs with the exact Jaccard `similarity` of each."""
    pairs = pairs.sort("row", "item")
    parts = [pairs.clear().with_columns(pl.lit(None, pl.Float64).alias("similarity"))]
    for block in pairs.iter_slices(max(1, limits.verify_rows)):
        places = block["row"].unique().sort()
        mine = shingle_texts(rows.texts_at(places.to_numpy()), scheme.ngram, limits)
        joined = Shingles(
            np.concatenate([mine.values, index.shingles.values]),
            np.concatenate([mine.starts, index.shingles.starts + mine.values.size]),
            np.concatenate([mine.sizes, index.shingles.sizes]),
        )
        left = places.search_sorted(block["row"]).to_numpy().astype(np.int64)
        right = block["item"].to_numpy().astype(np.int64) + places.len()
        similarity = joined.jaccard(left, right, limits.threads)
        block = block.with_columns(pl.Series("similarity", similarity))
        parts.append(block)
    return pl.concat(parts)
