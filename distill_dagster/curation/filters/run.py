"""Row-local filters as one Polars query, and over a file or frame of any size batch by batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl

from distill_dagster.curation.filters.base import Filter
from distill_dagster.curation.scores import add_scores
from distill_dagster.curation.task_view import TaskView
from distill_dagster.tables.messages import user_text_expr
from distill_dagster.tables.schemas import SCORED

FILTER_BATCH_ROWS = 50_000


def mark_dropped(rows: pl.DataFrame, filters: Sequence[Filter], about: TaskView) -> pl.DataFrame:
    """The rows with `drop_reason` and `drop_detail`: of the first filter that drops a row, null for a row that is kept.

    Args:
        rows: scored candidates (schema SCORED); the scores that the filters read are there.
    """
    lazy = rows.lazy()
    for one in filters:
        lazy = one.prepared(lazy)
    hits = [one.drops(about).fill_null(False).alias(_hit_column(one)) for one in filters]
    found = lazy.select(hits).collect() if hits else pl.DataFrame()
    reason, detail = pl.lit(None, dtype=pl.String), pl.lit(None, dtype=pl.String)
    # From the last to the first, so that the first one stands outermost.
    for one in reversed(filters):
        reason = pl.when(pl.col(_hit_column(one))).then(pl.lit(one.drop_reason)).otherwise(reason)
        detail = pl.when(pl.col("drop_reason") == one.drop_reason).then(one.detail(about)).otherwise(detail)
    reasons = (
        found.select(reason.alias("drop_reason")).to_series() if hits else _null_series("drop_reason", rows.height)
    )
    dropped = reasons.is_not_null()
    # Only of the rows that are dropped: putting figures into words costs more than comparing them.
    details = rows.filter(dropped).with_columns(reasons.drop_nulls()).select(detail.cast(pl.String)).to_series()
    all_details = _null_series("drop_detail", rows.height)
    if len(details):
        all_details = all_details.scatter(dropped.arg_true(), details)
    return rows.with_columns(reasons, all_details)


def _null_series(name: str, rows: int) -> pl.Series:
    return pl.Series(name, [None], dtype=pl.String).new_from_index(0, rows)


def _hit_column(one: Filter) -> str:
    return f"drops {one.drop_reason}"


def filter_rows(
    source: pl.DataFrame | pl.LazyFrame | Path | str,
    filters: Sequence[Filter],
    about: TaskView,
    batch_rows: int = FILTER_BATCH_ROWS,
) -> Iterator[pl.DataFrame]:
    """Score and filter completions, without Dagster and in memory that is bounded by the batch.

    Args:
        source: a frame or a Parquet file with `messages` and `answer` (canonical JSON text), and any other column of
            `tables.SCORED`: those that are not there are null, and `status` is ok. A `scores` column is made anew.

    Returns:
        batches in the order of the source, each with `scores`, `drop_reason` and `drop_detail`.
    """
    from distill_dagster.curation.filters.settings import collect_scorers

    lazy = pl.scan_parquet(source) if isinstance(source, Path | str) else source.lazy()
    scorers = collect_scorers(list(filters))

    def judged(batch: pl.DataFrame) -> pl.DataFrame:
        return mark_dropped(add_scores(batch, scorers, about), filters, about)

    return map_in_batches(_complete_columns(lazy), judged, batch_rows)


def map_in_batches(
    rows: pl.LazyFrame, work: Callable[[pl.DataFrame], pl.DataFrame], batch_rows: int = FILTER_BATCH_ROWS
) -> Iterator[pl.DataFrame]:
    """What `work` makes of each batch of a query, in order."""
    # One batch ahead: what is Python in one batch runs beside what is not in the other.
    with ThreadPoolExecutor(2) as pool:
        ahead: deque[Future[pl.DataFrame]] = deque()
        for batch in rows.collect_batches(chunk_size=batch_rows, maintain_order=True):
            ahead.append(pool.submit(work, batch))
            if len(ahead) > 2:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _complete_columns(rows: pl.LazyFrame) -> pl.LazyFrame:
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
