"""Row-local filters as one Polars query, and over a file or frame of any size batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl

from distill_dagster.curation.about import About
from distill_dagster.curation.filters.base import Filter
from distill_dagster.curation.scores import Scorer, add_scores
from distill_dagster.tables import SCORED, user_text_expr

BATCH_ROWS = 50_000


def marked(rows: pl.LazyFrame, filters: Sequence[Filter], about: About) -> pl.LazyFrame:
    """The rows with `drop_reason` and `drop_detail`: of the first filter that drops a row, null for a row that is kept.

    Args:
        rows: scored candidates (schema SCORED); the scores that the filters read are there.
    """
    columns = rows.collect_schema().names()
    for one in filters:
        rows = one.prepared(rows)
    reason, detail = pl.lit(None, dtype=pl.String), pl.lit(None, dtype=pl.String)
    # From the last to the first, so that the first one stands outermost.
    for one in reversed(filters):
        reason = pl.when(pl.col(_hit(one))).then(pl.lit(one.drop_reason)).otherwise(reason)
        detail = pl.when(pl.col(_hit(one))).then(one.detail(about)).otherwise(detail)
    hits = [one.drops(about).fill_null(False).alias(_hit(one)) for one in filters]
    return rows.with_columns(hits).select(
        *columns, reason.alias("drop_reason"), detail.cast(pl.String).alias("drop_detail")
    )


def _hit(one: Filter) -> str:
    return f"drops {one.drop_reason}"


def filter_rows(
    source: pl.DataFrame | pl.LazyFrame | Path | str,
    filters: Sequence[Filter],
    about: About,
    batch_rows: int = BATCH_ROWS,
) -> Iterator[pl.DataFrame]:
    """Score and filter completions, without Dagster and in memory that is bounded by the batch.

    Args:
        source: a frame or a Parquet file with `messages` and `answer` (canonical JSON text), and any other column of
            `tables.SCORED`: those that are not there are null, and `status` is ok. A `scores` column is made anew.

    Yields:
        batches in the order of the source, each with `scores`, `drop_reason` and `drop_detail`.
    """
    from distill_dagster.curation.filters.settings import scorers_of

    lazy = pl.scan_parquet(source) if isinstance(source, Path | str) else source.lazy()
    scorers = scorers_of(list(filters))
    whole = _whole(lazy)
    # One batch ahead: what is Python in one batch runs beside what is not in the other.
    with ThreadPoolExecutor(2) as pool:
        ahead: deque[Future[pl.DataFrame]] = deque()
        for batch in whole.collect_batches(chunk_size=batch_rows, maintain_order=True):
            ahead.append(pool.submit(_judged, batch, filters, scorers, about))
            if len(ahead) > 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _judged(batch: pl.DataFrame, filters: Sequence[Filter], scorers: list[Scorer], about: About) -> pl.DataFrame:
    return marked(add_scores(batch, scorers, about).lazy(), filters, about).collect()


def _whole(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The rows with every column of the scored table."""
    here = set(rows.collect_schema().names())
    default = {"status": pl.lit("ok"), "answer_kind": pl.lit("text")}
    absent = [
        default.get(name, pl.lit(None)).cast(dtype).alias(name) for name, dtype in SCORED.items() if name not in here
    ]
    rows = rows.with_columns(absent)
    if "words" not in here:
        rows = rows.with_columns(user_text_expr().str.count_matches(r"\S+").cast(pl.Int64).alias("words"))
    return rows
