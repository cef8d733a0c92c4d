"""Wide tables of a cut, sorted: part by part through a folder, so that none of them is in memory as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from distill_dagster.tables.schemas import conform_to_schema

PART_ROWS = 100_000
"""Rows of a part, which is sorted in memory."""
SORT_WORKERS = 2
"""Parts that are sorted at a time: while one is written, another is read."""
SINK_BATCH_ROWS = 4_096
"""Rows of a part that wait in memory to be written."""
READ_BATCH_ROWS = 16_384
"""Rows that are read of a part at a time. Polars reads some such groups ahead, whatever their size."""


@dataclass(frozen=True)
class TableParts:
    """A table to build of some rows of a source.

    chosen: which, by the columns that were decided.
    sort_by: its order; the first column is that of `parts_of`.
    made: from chosen rows, with what was decided beside them, those of the schema, row by row.
    """

    name: str
    chosen: pl.Expr
    schema: pl.Schema
    sort_by: tuple[str, ...]
    made: Callable[[pl.DataFrame], pl.DataFrame]

    def of(self, source: pl.LazyFrame, decided: pl.DataFrame) -> pl.LazyFrame:
        """The rows with `part`, unsorted. Of the source, only columns of the schema are read."""
        read = [name for name in source.collect_schema() if name in self.schema]
        wide = pl.concat([source.select(read), decided.lazy()], how="horizontal")
        numbered = dict(self.schema) | {"part": decided.schema["part"]}
        return wide.filter(self.chosen).map_batches(self._work, schema=numbered, streamable=True)

    def _work(self, rows: pl.DataFrame) -> pl.DataFrame:
        return self.made(rows).select(*self.schema, rows["part"])

    def conform(self, rows: pl.DataFrame) -> pl.DataFrame:
        return conform_to_schema(rows, self.schema, self.sort_by)


def assign_parts(prompt_ids: pl.Series, rows: int = PART_ROWS) -> pl.Series:
    """The number of each row's part: every id of a part comes before those of the next, whatever the rows' order."""
    bounds = prompt_ids.sort().gather_every(rows)[1:]
    return bounds.search_sorted(prompt_ids, side="right").alias("part")


def write_tables(
    source: pl.LazyFrame, decided: pl.DataFrame, tables: Sequence[TableParts], folder: Path | None
) -> list[pl.LazyFrame]:
    """Each table, conform with its schema and sorted.

    Args:
        decided: in the order of the source, `part` (`parts_of`) and other columns that are put beside its own.
        folder: where the tables are to be, in sorted parts; without one they are in memory.
    """
    rows = [table.of(source, decided) for table in tables]
    if folder is None or not decided["part"].max():
        found = pl.collect_all([each.drop("part") for each in rows], engine="streaming")
        return [table.conform(each).lazy() for table, each in zip(tables, found, strict=True)]
    unsorted = folder / ".unsorted"
    sinks = [
        each.sink_ipc(
            pl.PartitionBy(unsorted / table.name, key="part", include_key=False),
            record_batch_size=SINK_BATCH_ROWS,
            mkdir=True,
            lazy=True,
        )
        for table, each in zip(tables, rows, strict=True)
    ]
    pl.collect_all(sinks, engine="streaming")

    def part_sorted(table: TableParts, number: int) -> Path:
        part, path = unsorted / table.name / f"part={number}", folder / table.name / f"{number}.arrow"
        whole = table.conform(pl.scan_ipc(sorted(part.iterdir())).collect())
        whole.write_ipc(path, record_batch_size=READ_BATCH_ROWS)
        remover.submit(shutil.rmtree, part)
        return path

    def parts_sorted(pool: ThreadPoolExecutor, table: TableParts) -> list[Future[Path]]:
        (folder / table.name).mkdir()
        numbers = sorted(decided.filter(table.chosen)["part"].unique())
        return [pool.submit(part_sorted, table, number) for number in numbers]

    # Removing waits for the disk, not for a core.
    with ThreadPoolExecutor(1) as remover, ThreadPoolExecutor(SORT_WORKERS) as pool:
        futures = [parts_sorted(pool, table) for table in tables]
        files = [[one.result() for one in each] for each in futures]
    return [
        pl.scan_ipc(each) if each else pl.LazyFrame(schema=table.schema)
        for table, each in zip(tables, files, strict=True)
    ]
