"""Near-duplicates without compiled code: words by Polars, the rest one DuckDB query. The reference for recall.

It finds every pair. In place of MinHash it joins on prefixes (Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and
Srikant 2007). If the shingles of two rows are sorted, rarest first, a pair with Jaccard t or more shares one of the
first |x| - ceil(t |x|) + 1 shingles of each row. It is several times slower than the kernel and needs the shingles of
all rows on disk.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import polars as pl

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup.duplicates import (
    PAIR_SCHEMA,
    Duplicates,
    build_exact_pairs,
    build_order_exprs,
    cluster_pairs,
)
from distill_dagster.curation.dedup.folding import (
    WORD_PATTERN,
    MinHashScheme,
    exact_key_expr,
    folded_expr,
)
from distill_dagster.curation.dedup.text_rows import TextSource, open_rows

NUMBER_PATTERN = r"-?\p{Nd}+(?:[.,/]\p{Nd}+)*"
"""A number in a folded text, as `MinHashScheme.keep_numbers` compares them."""
# A shingle is the md5 of its words. It has 128 bits, so equal hashes mean equal shingles.
_SHINGLES_SQL = """
CREATE OR REPLACE TABLE shingles AS
SELECT DISTINCT place, md5_number(array_to_string(list_slice(words, head, head + width - 1), ' ')) AS shingle
FROM (
    SELECT *, unnest(range(1, len(words) - width + 2)) AS head
    FROM (SELECT *, least(len(words), $ngram) AS width FROM compared)
)
"""
_PAIRS_SQL = """
WITH sizes AS (
    SELECT place, count(*) AS size FROM shingles GROUP BY place
), shared AS (
    -- A shingle of a single row is the rarest and joins nothing: it only takes a place in its row's prefix.
    SELECT shingle, count(*) AS rows FROM shingles GROUP BY shingle HAVING count(*) > 1
), ranked AS (
    SELECT place, size, shingle, size - count(*) OVER row + row_number() OVER (row ORDER BY rows, shingle) AS rank
    FROM shingles JOIN shared USING (shingle) JOIN sizes USING (place)
    WINDOW row AS (PARTITION BY place)
), prefix AS (
    SELECT place, size, shingle FROM ranked WHERE rank <= size - ceil($threshold * size - 1e-9) + 1
), candidates AS (
    SELECT DISTINCT a.place AS "left", b.place AS "right", a.size AS left_size, b.size AS right_size
    FROM prefix a JOIN prefix b ON a.shingle = b.shingle AND a.place < b.place
    WHERE least(a.size, b.size) >= $threshold * greatest(a.size, b.size) - 1e-9
), counted AS (
    SELECT "left", "right", left_size, right_size, count(*)::DOUBLE AS common
    FROM candidates
    JOIN shingles l ON l.place = "left"
    JOIN shingles r ON r.place = "right" AND r.shingle = l.shingle
    GROUP BY ALL
)
SELECT "left", "right", common / (left_size + right_size - common) AS similarity
FROM counted
WHERE common / (left_size + right_size - common) >= $threshold
"""


def find_duplicates_by_prefix_join(
    source: TextSource,
    *,
    text: str | pl.Expr = "text",
    id: str | pl.Expr = "id",
    order: Sequence[pl.Expr] = (),
    scheme: MinHashScheme | None = None,
    threshold: float = 0.7,
    limits: ResourceLimits | None = None,
) -> Duplicates:
    """As `duplicates.find_duplicates`, with the near pairs that its signatures miss.

    `bands` and `rows_per_band` of the scheme have no effect. DuckDB uses at most `limits.memory_mb` and spills into
    `limits.spill`. The words of all rows are in memory too.
    """
    scheme, limits = scheme or MinHashScheme(), limits or ResourceLimits()
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold must be above 0 and at most 1, not {threshold}")
    with open_rows(source, text, build_order_exprs(id, order), limits) as rows:
        ranking = rows.read_columns()
        folded = [
            pl.Series("text", batch).to_frame().select(folded_expr(pl.col("text"))) for batch in rows.iter_texts()
        ]
    texts = pl.concat(folded) if folded else pl.DataFrame(schema={"text": pl.String})
    table = texts.with_row_index("place").with_columns(ranking["id"], exact_key_expr(pl.col("text")).alias("key"))
    firsts = table.sort("id").with_columns(pl.col("place").first().over("key").alias("first"))
    repeats = firsts.filter(pl.col("place") != pl.col("first"))
    exact = build_exact_pairs(repeats)
    numbers = pl.col("text").str.extract_all(NUMBER_PATTERN).list.join(" ").alias("numbers")
    compared = (
        firsts.filter(pl.col("place") == pl.col("first"))
        .select("place", pl.col("text").str.extract_all(WORD_PATTERN).alias("words"), numbers)
        .filter(pl.col("words").list.len() >= scheme.min_words)
    )  # fmt: skip
    near = join_near_pairs(compared.select("place", "words"), scheme.ngram, threshold, limits)
    if scheme.keep_numbers:
        for side in ("left", "right"):
            of = compared.select(pl.col("place").alias(side), pl.col("numbers").alias(f"{side}_numbers"))
            near = near.join(of, on=side)
        near = near.filter(pl.col("left_numbers") == pl.col("right_numbers"))
    near = near.select("left", "right", pl.lit("near").alias("kind"), "similarity").cast(PAIR_SCHEMA)
    return cluster_pairs(pl.concat([exact, near]), ranking)


def join_near_pairs(compared: pl.DataFrame, ngram: int, threshold: float, limits: ResourceLimits) -> pl.DataFrame:
    """Pairs of places (left < right) with a Jaccard similarity of `threshold` or more, and this `similarity`.

    Args:
        compared: `place` and `words`, a list of at least one word.
    """
    with limits.make_folder() as folder, duckdb.connect(str(folder / "shingles.duckdb")) as connection:
        connection.sql(f"SET memory_limit = '{limits.memory_mb}MiB'")
        connection.sql(f"SET threads = {limits.threads}")
        connection.sql("SET preserve_insertion_order = false")
        connection.register("compared", compared.to_arrow())
        connection.execute(_SHINGLES_SQL, {"ngram": ngram})
        pairs = connection.sql(_PAIRS_SQL, params={"threshold": threshold}).to_arrow_table()
    return pl.DataFrame(pairs).sort("left", "right")
