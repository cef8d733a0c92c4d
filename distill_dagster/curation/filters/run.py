"""Apply filters to candidates: one Polars query per batch, over a frame or file of any size."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import polars as pl

from distill_dagster.core.workers import IN_PROCESS, Workers
from distill_dagster.curation.filters.base import Filter
from distill_dagster.curation.filters.settings import collect_scorers
from distill_dagster.curation.scores import add_scores
from distill_dagster.curation.task_view import TaskView
from distill_dagster.tables.messages import user_text_expr
from distill_dagster.tables.schemas import SCORED

FILTER_BATCH_ROWS = 50_000


def mark_dropped(rows: pl.DataFrame, filters: Sequence[Filter], task: TaskView) -> pl.DataFrame:
    """The rows with `drop_reason` and `drop_detail` of the first filter that drops them; null for rows that are kept.

    Args:
        rows: scored candidates (schema SCORED) with the scores that the filters read.
    """
    drops = [each.drop_expr(task).fill_null(False).alias(_hit_column(each)) for each in filters]
    # Filters that only mask are literals, which `select` alone would not repeat for each row.
    hits = rows.lazy().with_columns(drops).select(map(_hit_column, filters)).collect() if drops else pl.DataFrame()
    reason, detail = pl.lit(None, dtype=pl.String), pl.lit(None, dtype=pl.String)
    # From the last to the first, so that the first filter is the outermost condition.
    for each in reversed(filters):
        reason = pl.when(pl.col(_hit_column(each))).then(pl.lit(each.reason)).otherwise(reason)
        detail = pl.when(pl.col("drop_reason") == each.reason).then(each.detail_expr(task)).otherwise(detail)
    reasons = (
        hits.select(reason.alias("drop_reason")).to_series() if drops else _null_series("drop_reason", rows.height)
    )
    dropped = reasons.is_not_null()
    # Only for dropped rows: to format figures takes longer than to compare them.
    details = rows.filter(dropped).with_columns(reasons.drop_nulls()).select(detail.cast(pl.String)).to_series()
    all_details = _null_series("drop_detail", rows.height)
    if len(details):
        all_details = all_details.scatter(dropped.arg_true(), details)
    return rows.with_columns(reasons, all_details)


def _null_series(name: str, rows: int) -> pl.Series:
    return pl.Series(name, [None], dtype=pl.String).new_from_index(0, rows)


def _hit_column(each: Filter) -> str:
    return f"drops {each.reason}"


def filter_rows(
    source: pl.DataFrame | pl.LazyFrame | Path | str,
    filters: Sequence[Filter],
    task: TaskView,
    batch_rows: int = FILTER_BATCH_ROWS,
) -> Iterator[pl.DataFrame]:
    """Score and filter completions, without Dagster and with the memory of a few batches.

    Args:
        source: a frame or a Parquet file with `messages` and `answer` (canonical JSON text), and any other column of
            `tables.schemas.SCORED`. Absent columns are null, and `status` is ok. A `scores` column is computed again.

    Returns:
        batches in the order of the source, each with `scores`, `drop_reason` and `drop_detail`.
    """
    lazy = pl.scan_parquet(source) if isinstance(source, Path | str) else source.lazy()
    scorers = collect_scorers(list(filters))

    def mark(batch: pl.DataFrame) -> pl.DataFrame:
        return mark_dropped(add_scores(batch, scorers, task), filters, task)

    return map_in_batches(_complete_columns(lazy), mark, batch_rows)


def map_in_batches(
    rows: pl.LazyFrame,
    work: Callable[[pl.DataFrame], pl.DataFrame],
    batch_rows: int = FILTER_BATCH_ROWS,
    workers: Workers = IN_PROCESS,
) -> Iterator[pl.DataFrame]:
    """The result of `work` for each batch of a query, in order."""
    if workers.is_remote:
        yield from workers.map(work, rows.collect_batches(chunk_size=batch_rows, maintain_order=True))
        return
    # Two batches at a time: Python code of one runs next to compiled code of the other.
    with ThreadPoolExecutor(2) as pool:
        running: deque[Future[pl.DataFrame]] = deque()
        for batch in rows.collect_batches(chunk_size=batch_rows, maintain_order=True):
            running.append(pool.submit(work, batch))
            if len(running) > 2:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


def _complete_columns(rows: pl.LazyFrame) -> pl.LazyFrame:
    """The rows with every column of SCORED."""
    present = set(rows.collect_schema().names())
    defaults = {"status": pl.lit("ok"), "answer_kind": pl.lit("text")}
    absent = [
        defaults.get(name, pl.lit(None)).cast(dtype).alias(name)
        for name, dtype in SCORED.items()
        if name not in present
    ]
    rows = rows.with_columns(absent)
    if "words" not in present:
        rows = rows.with_columns(user_text_expr().str.count_matches(r"\S+").cast(pl.Int64).alias("words"))
    return rows
