"""Read the texts of a table in batches, from a frame, a query or Parquet files. A batch bounds the memory in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.core.limits import ResourceLimits

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

TextSource = pl.DataFrame | pl.LazyFrame | Path | Sequence[Path]
"""A frame, a query, or a list of Parquet files with the same columns."""


class TextRows:
    """A table that can be read several times. Its rows have the same places, from 0 on, each time."""

    def __init__(
        self, table: pl.DataFrame | list[Path], text: str, columns: Sequence[pl.Expr], limits: ResourceLimits
    ) -> None:
        self._table, self._text, self._columns, self._limits = table, text, columns, limits
        self._kept: list[pa.LargeStringArray] | None = None

    def read_columns(self) -> pl.DataFrame:
        """The columns other than the text, of all rows."""
        if isinstance(self._table, pl.DataFrame):
            return self._table.select(self._columns)
        return pl.scan_parquet(self._table).select(self._columns).collect()

    def iter_texts(self) -> Iterator[pa.LargeStringArray]:
        """All texts, in order, one batch at a time."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[pa.LargeStringArray] | None = []
        free_bytes = self._limits.memory_mb * 2**20 // 2
        for batch in self._read():
            free_bytes -= batch.nbytes
            if kept is not None and free_bytes > 0:
                kept.append(batch)
            else:
                kept = None
            yield batch
        self._kept = kept

    def _read(self) -> Iterator[pa.LargeStringArray]:
        size = self._limits.batch_rows
        if isinstance(self._table, pl.DataFrame):
            for start in range(0, self._table.height, size):
                yield _to_large_strings(self._table[self._text].slice(start, size).to_arrow())
            return
        import pyarrow.parquet as pq

        for path in self._table:
            with pq.ParquetFile(path) as file:
                # Polars would return string views, which the kernel cannot read without a copy.
                for batch in file.iter_batches(batch_size=size, columns=[self._text], use_threads=False):
                    yield _to_large_strings(batch.column(0))

    def iter_texts_at(self, places: np.ndarray[Any, Any]) -> Iterator[pa.LargeStringArray]:
        """The texts at these places (sorted), one batch at a time."""
        import numpy as np
        import pyarrow as pa

        start = 0
        for batch in self.iter_texts():
            first, last = np.searchsorted(places, [start, start + len(batch)])
            if last > first:
                yield batch.take(pa.array(places[first:last] - start))
            start += len(batch)


@contextmanager
def open_rows(
    source: TextSource, text: str | pl.Expr, columns: Sequence[str | pl.Expr], limits: ResourceLimits
) -> Iterator[TextRows]:
    """Open a source for reading. A query runs once, into a temporary file, so that its rows keep their places.

    Args:
        text: the text to compare: a column, or an expression such as `messages.user_text_expr()`.
        columns: the other columns to read. Expressions must have distinct names.

    Raises:
        ValueError: the list of Parquet files is empty.
    """
    text = pl.col(text) if isinstance(text, str) else text
    others = [pl.col(column) if isinstance(column, str) else column for column in columns]
    named = [pl.col(column.meta.output_name()) for column in others]
    selected = [*others, text.cast(pl.String).fill_null("").alias("__text")]
    if isinstance(source, pl.DataFrame):
        yield TextRows(source.select(selected), "__text", named, limits)
        return
    if not isinstance(source, pl.LazyFrame):
        files = [source] if isinstance(source, Path) else list(source)
        if not files:
            raise ValueError("The list of Parquet files is empty.")
        if text.meta.is_column():
            yield TextRows(files, text.meta.output_name(), others, limits)
            return
        source = pl.scan_parquet(files)
    with limits.make_folder() as folder:
        path = folder / "rows.parquet"
        source.select(selected).sink_parquet(path, compression="lz4", row_group_size=8 * limits.batch_rows)
        yield TextRows([path], "__text", named, limits)


def _to_large_strings(array: pa.Array) -> pa.LargeStringArray:
    """The array with offsets of 64 bits and with empty texts in place of nulls."""
    import pyarrow as pa

    if array.null_count:
        array = array.fill_null("")
    return array.cast(pa.large_string())
