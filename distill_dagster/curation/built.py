"""Wide tables of a cut, sorted: part by part through a folder, so that none of them is in memory as a whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl

from distill_dagster.tables import conform

PART_ROWS = 100_000
"""Rows of a part, which is sorted in memory."""
FLUSHED = 4_096
"""Rows of a part that wait in memory to be written."""
GROUP_ROWS = 16_384
"""Rows that are read of a part at a time. Polars reads some such groups ahead, whatever their size."""


def parts_of(prompt_ids: pl.Series, rows: int = PART_ROWS) -> pl.Series:
    """The number of each row's part: every id of a part comes before those of the next, whatever the rows' order."""
    bounds = prompt_ids.sort().gather_every(rows)[1:]
    return bounds.search_sorted(prompt_ids, side="right").alias("part")


def built(
    source: pl.LazyFrame,
    decided: pl.DataFrame,
    schema: pl.Schema,
    sort_by: tuple[str, ...],
    folder: Path | None,
    made: Callable[[pl.DataFrame], pl.DataFrame],
) -> pl.LazyFrame:
    """The chosen rows of the source, conform with a schema and sorted.

    Args:
        decided: in the order of the source: `chosen`, `part` (`parts_of`, of the first column of `sort_by`), and
            columns that are put beside those of the source.
        folder: where the table is to be, in sorted parts; without one it is in memory.
        made: from chosen rows, with `part`, those of the schema, row by row.
    """
    wide = pl.concat([source, decided.lazy()], how="horizontal").filter("chosen").drop("chosen")
    numbered = dict(schema) | {"part": decided.schema["part"]}

    def work(rows: pl.DataFrame) -> pl.DataFrame:
        return made(rows).select(*schema, rows["part"])

    rows = wide.map_batches(work, schema=numbered, streamable=True)
    if folder is None or not decided["part"].max():
        return conform(rows.drop("part").collect(engine="streaming"), schema, sort_by).lazy()
    unsorted = folder / ".unsorted"
    rows.sink_ipc(pl.PartitionBy(unsorted, key="part", include_key=False), record_batch_size=FLUSHED, mkdir=True)
    files: list[Path] = []
    for number in sorted(decided.filter("chosen")["part"].unique()):
        part = unsorted / f"part={number}"
        files.append(folder / f"{number}.arrow")
        whole = conform(pl.scan_ipc(sorted(part.iterdir())).collect(), schema, sort_by)
        whole.write_ipc(files[-1], record_batch_size=GROUP_ROWS)
        shutil.rmtree(part)
    return pl.scan_ipc(files) if files else pl.LazyFrame(schema=schema)
