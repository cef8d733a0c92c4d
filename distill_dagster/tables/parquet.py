"""Write Parquet files in one rename."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from distill_dagster.core.files import get_temporary_path


def write_parquet(
    frame: pl.DataFrame | pl.LazyFrame, path: Path, metadata: Mapping[str, str], group_rows: int | None = None
) -> None:
    """Write a table with its metadata. A reader sees the old file or the new one, never a part.

    `group_rows` is the size of a row group. Readers hold several groups at a time; large groups take less of the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = get_temporary_path(path)
    try:
        frame.lazy().sink_parquet(
            temporary, compression="zstd", row_group_size=group_rows, metadata=dict(metadata), engine="streaming"
        )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
