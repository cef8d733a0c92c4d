"""Write sorted tables part by part, so that no table is in memory as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distill_dagster.tables.schemas import conform_to_schema

PART_ROWS = 100_000
"""Rows per part. A part is sorted in memory."""
SORT_WORKERS = 2
"""Parts that are sorted at the same time: one is written while the other is read."""
SINK_BATCH_ROWS = 4_096
"""Rows of an unsorted part that are buffered before they are written. With many parts it is a quarter of this: a
buffered row holds the texts of all rows that it was read with."""
READ_BATCH_ROWS = 16_384
"""Rows of a part that are read at a time. Polars reads several such groups ahead, of any size."""
ONE_PASS_PARTS = 10
"""With more parts, tables are built one after another, and unsorted parts are compressed. One reading of the source for
all tables is a fifth faster. But Polars then holds the rows that one table has not taken yet, and those that the disk
has not."""


@dataclass(frozen=True)
class TableParts:
    """A table to build from some rows of a source.

    Attributes:
        rows_expr: the rows, by the decided columns.
        sort_by: the order; its first column is the one that `assign_parts` splits by.
        build_rows: builds rows of the schema from rows of the source with their decided columns, row by row.
    """

    name: str
    rows_expr: pl.Expr
    schema: pl.Schema
    sort_by: tuple[str, ...]
    build_rows: Callable[[pl.DataFrame], pl.DataFrame]

    def scan_rows(self, source: pl.LazyFrame, decided: pl.DataFrame) -> pl.LazyFrame:
        """The rows with `part`, unsorted. It reads only columns of the schema from the source."""
        read = [name for name in source.collect_schema() if name in self.schema]
        wide = pl.concat([source.select(read), decided.lazy()], how="horizontal")
        numbered = dict(self.schema) | {"part": decided.schema["part"]}
        return wide.filter(self.rows_expr).map_batches(self._build_part, schema=numbered, streamable=True)

    def _build_part(self, rows: pl.DataFrame) -> pl.DataFrame:
        return self.build_rows(rows).select(*self.schema, rows["part"])

    def conform(self, rows: pl.DataFrame) -> pl.DataFrame:
        return conform_to_schema(rows, self.schema, self.sort_by)


def assign_parts(prompt_ids: pl.Series, rows: int = PART_ROWS) -> pl.Series:
    """The number of each row's part. Every id of a part is lower than those of the next, in any order of rows."""
    bounds = prompt_ids.sort().gather_every(rows)[1:]
    return bounds.search_sorted(prompt_ids, side="right").alias("part")


def write_tables(
    source: pl.LazyFrame, decided: pl.DataFrame, tables: Sequence[TableParts], folder: Path | None
) -> list[pl.LazyFrame]:
    """Build each table, sorted and with its schema.

    Args:
        decided: in the order of the source, `part` (`assign_parts`) and columns to add to those of the source.
        folder: the folder for the tables, in sorted parts; without one they are in memory.
    """
    rows = [table.scan_rows(source, decided) for table in tables]
    parts = decided["part"].n_unique()
    if folder is None or parts <= 1:
        found = pl.collect_all([each.drop("part") for each in rows], engine="streaming")
        return [table.conform(each).lazy() for table, each in zip(tables, found, strict=True)]
    unsorted, one_pass = folder / ".unsorted", parts <= ONE_PASS_PARTS
    sinks = [
        each.sink_ipc(
            pl.PartitionBy(unsorted / table.name, key="part", include_key=False),
            record_batch_size=SINK_BATCH_ROWS if one_pass else SINK_BATCH_ROWS // 4,
            compression="uncompressed" if one_pass else "lz4",
            mkdir=True,
            lazy=True,
        )
        for table, each in zip(tables, rows, strict=True)
    ]
    for together in [sinks] if one_pass else [[sink] for sink in sinks]:
        pl.collect_all(together, engine="streaming")

    def sort_part(table: TableParts, number: int) -> Path:
        part, path = unsorted / table.name / f"part={number}", folder / table.name / f"{number}.arrow"
        whole = table.conform(pl.scan_ipc(sorted(part.iterdir())).collect())
        whole.write_ipc(path, record_batch_size=READ_BATCH_ROWS)
        remover.submit(shutil.rmtree, part)
        return path

    def sort_parts(pool: ThreadPoolExecutor, table: TableParts) -> list[Future[Path]]:
        (folder / table.name).mkdir()
        numbers = sorted(decided.filter(table.rows_expr)["part"].unique())
        return [pool.submit(sort_part, table, number) for number in numbers]

    # To remove files waits for the disk and needs no core.
    with ThreadPoolExecutor(1) as remover, ThreadPoolExecutor(SORT_WORKERS) as pool:
        futures = [sort_parts(pool, table) for table in tables]
        files = [[future.result() for future in each] for each in futures]
    return [
        pl.scan_ipc(each) if each else pl.LazyFrame(schema=table.schema)
        for table, each in zip(tables, files, strict=True)
    ]
