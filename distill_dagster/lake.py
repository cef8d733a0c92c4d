"""The lake: one Parquet file (or folder) per asset and partition, each with a record of what it was made from.

The record lies inside the Parquet file's own metadata, or beside the files of a folder as `artifact.json`, so that
content and record change in one rename and can never disagree.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster import tables
from distill_dagster.errors import DistillError

RECORD_FILE = "artifact.json"
_KEY = "distill"


@dataclass(frozen=True)
class Record:
    """What an artifact is, and what it was made from.

    `inputs` maps each upstream artifact, written `asset` or `asset[partition]`, to the data version that was read.
    """

    asset: str
    partition: str | None
    data_version: str
    code_version: str
    inputs: dict[str, str]
    rows: int = 0
    missing_rows: int = 0
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    extra: dict[str, Any] = field(default_factory=dict)


def node(asset: str, partition: str | None = None) -> str:
    return asset if partition is None else f"{asset}[{partition}]"


class Lake:
    """Reads and writes the artifacts of all tasks below one folder; reports have a folder of their own."""

    def __init__(self, root: Path, reports: Path) -> None:
        self.root, self.reports = root, reports

    def path(self, task: str, asset: str, partition: str | None = None) -> Path:
        """The Parquet file of a table. Unpartitioned assets lie beside the folders of partitioned ones."""
        base = self.root / task
        return base / f"{asset}.parquet" if partition is None else base / asset / f"{partition}.parquet"

    def folder(self, task: str, asset: str, partition: str) -> Path:
        """The folder of an artifact that is not a table: an adapter or a report."""
        return self.reports / task / partition if asset == "eval_report" else self.root / task / asset / partition

    def record(self, task: str, asset: str, partition: str | None = None) -> Record | None:
        """The record of a finished artifact, or None where there is none."""
        path = self.path(task, asset, partition)
        if path.is_file():
            return Record(**json.loads(pl.read_parquet_metadata(path)[_KEY]))
        if partition is not None:
            return read_folder_record(self.folder(task, asset, partition))
        return None

    def read(self, task: str, asset: str, partition: str | None, schema: pl.Schema) -> tuple[pl.DataFrame, Record]:
        """A table and its record.

        Raises:
            DistillError: the table was never made.
            SchemaError: it does not have the declared columns.
        """
        record = self.record(task, asset, partition)
        if record is None:
            raise DistillError(
                f"{task}/{node(asset, partition)} has not been materialized yet. Run `distill run {task}`, or "
                f"materialize it before the assets that need it."
            )
        frame = pl.read_parquet(self.path(task, asset, partition))
        if dict(frame.schema) != dict(schema):
            raise tables.SchemaError(f"{self.path(task, asset, partition)} does not have the declared schema")
        return frame, record

    def write(self, task: str, frame: pl.DataFrame, record: Record) -> None:
        path = self.path(task, record.asset, record.partition)
        tables.write_parquet(frame, path, {_KEY: json.dumps(asdict(record))})

    def write_folder(self, folder: Path, record: Callable[[str], Record], fill: Callable[[Path], str]) -> Record:
        """Let `fill` write into a temporary folder and return its data version; add the record; swap it in."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(f".{folder.name}.writing-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            made = record(fill(temporary))
            (temporary / RECORD_FILE).write_text(json.dumps(asdict(made), indent=1))
            swap_folder(temporary, folder)
            return made
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def read_folder_record(folder: Path) -> Record | None:
    try:
        return Record(**json.loads((folder / RECORD_FILE).read_text()))
    except FileNotFoundError:
        return None


def swap_folder(new: Path, target: Path) -> None:
    """Put `new` in the place of `target`; a crash in between leaves one of the two complete."""
    old = target.with_name(f".{target.name}.old-{uuid.uuid4().hex[:8]}")
    if target.exists():
        target.rename(old)
    try:
        new.rename(target)
    except OSError:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def merge_inputs(*parts: Mapping[str, str]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for part in parts:
        merged.update(part)
    return dict(sorted(merged.items()))
