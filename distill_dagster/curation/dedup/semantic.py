"""Semantic duplicates: rows with close sentence embeddings (SemDeDup, Abbas et al. 2023), compared in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from distill_dagster.core.embedding import EmbedFunction
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.core.workers import IN_PROCESS, Workers, map_parts
from distill_dagster.curation.dedup.duplicates import (
    PAIR_SCHEMA,
    Duplicates,
    build_exact_pairs,
    build_order_exprs,
    cluster_pairs,
)
from distill_dagster.curation.dedup.folding import exact_key_expr, folded_expr
from distill_dagster.curation.dedup.text_rows import TextSource, open_rows

MAX_SEMANTIC_ROWS = 50_000
"""The default limit on rows. Embedding more takes hours on a laptop, and comparing takes quadratic time."""
BLOCK_ROWS = 2048
COSINE_DIGITS = 4
"""Similarities are rounded to this number of digits, so that results are the same on every machine."""


def find_semantic_duplicates(
    source: TextSource,
    embed: EmbedFunction,
    *,
    text: str | pl.Expr = "text",
    id: str | pl.Expr = "id",
    order: Sequence[pl.Expr] = (),
    threshold: float = 0.95,
    most_rows: int = MAX_SEMANTIC_ROWS,
    limits: ResourceLimits | None = None,
    workers: Workers = IN_PROCESS,
) -> Duplicates | None:
    """Find clusters of rows whose embeddings have a cosine similarity of `threshold` or more.

    Every pair is compared, so none is missed. Equal texts are embedded once. Memory: the embeddings (1.5 KB per row
    with 384 dimensions) and one block of similarities. For `text`, `id` and `order` see `find_duplicates`.

    Args:
        embed: embeds texts, such as the method `embed` of a sentence model in `distill_dagster.student`.
        most_rows: the largest table that is compared.
        workers: compare blocks of embeddings.

    Returns:
        None if the table has more than `most_rows` rows.

    Raises:
        ValueError: two duplicates have the same id, or the threshold is out of range.
    """
    limits = limits or ResourceLimits()
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, not {threshold}")
    with open_rows(source, text, build_order_exprs(id, order), limits) as rows:
        ranking = rows.read_columns()
        if ranking.height > most_rows:
            return None
        parts = [pl.Series("text", batch) for batch in rows.iter_texts()]
    texts = pl.DataFrame({"text": pl.concat(parts) if parts else pl.Series([], dtype=pl.String)})
    folded = texts.with_columns(exact_key_expr(folded_expr(pl.col("text"))).alias("key"), ranking["id"]).with_row_index(
        "place"
    )
    # The row with the smallest id represents equal texts. Empty texts are only compared exactly.
    firsts = folded.sort("id").with_columns(pl.col("place").first().over("key").alias("first"))
    repeats = firsts.filter(pl.col("place") != pl.col("first"))
    exact = build_exact_pairs(repeats)
    compared = firsts.filter((pl.col("place") == pl.col("first")) & (pl.col("key") != "")).sort("key")
    close = pl.DataFrame(schema=PAIR_SCHEMA)
    if compared.height > 1:
        vectors = np.ascontiguousarray(embed(compared["text"].to_list()), dtype=np.float32)
        left, right, similarity = find_close_pairs(vectors, threshold, workers)
        a, b = (compared["place"].gather(places) for places in (left, right))
        close = pl.DataFrame({"a": a, "b": b, "similarity": similarity}).select(
            pl.min_horizontal("a", "b").alias("left"),
            pl.max_horizontal("a", "b").alias("right"),
            pl.lit("semantic").alias("kind"),
            "similarity",
        )
    return cluster_pairs(pl.concat([exact, close.cast(PAIR_SCHEMA)]), ranking)


def find_close_pairs(
    vectors: np.ndarray[Any, Any], threshold: float, workers: Workers = IN_PROCESS
) -> tuple[np.ndarray[Any, Any], ...]:
    """Pairs of unit vectors (left < right) whose cosine is `threshold` or more: left, right and the rounded cosines."""
    find = partial(_find_block_pairs, vectors=vectors, threshold=threshold)
    parts = map_parts(workers, find, range(0, len(vectors), BLOCK_ROWS))
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _find_block_pairs(top: int, vectors: np.ndarray[Any, Any], threshold: float) -> tuple[np.ndarray[Any, Any], ...]:
    """The close pairs of a block of vectors with itself and all blocks after it."""
    lefts, rights, cosines = [], [], []
    for start in range(top, len(vectors), BLOCK_ROWS):
        block = vectors[top : top + BLOCK_ROWS] @ vectors[start : start + BLOCK_ROWS].T
        left, right = np.nonzero(block >= threshold - 10.0**-COSINE_DIGITS)
        cosine = np.minimum(np.round(block[left, right].astype(np.float64), COSINE_DIGITS), 1.0)
        keep = (left + top < right + start) & (cosine >= threshold)
        lefts.append(left[keep] + top)
        rights.append(right[keep] + start)
        cosines.append(cosine[keep])
    return np.concatenate(lefts), np.concatenate(rights), np.concatenate(cosines)
