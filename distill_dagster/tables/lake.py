"""The lake: one Parquet file (or folder) per asset and partition, each with a record of what it was made from.

The record lies inside the Parquet file's own metadata, or beside the files of a folder as `artifact.json`, so that
content and record change in one rename and can never disagree.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import get_temporary_path, restore_folder, swap_folder
from distill_dagster.tables import schemas
from distill_dagster.tables.parquet import write_parquet

RECORD_FILE = "artifact.json"
LAST_GOOD_FOLDER = ".good"
"""The folder beside the tables of slices that did not pass their checks, with the versions before."""
_METADATA_KEY = "distill"


@dataclass(frozen=True)
class ArtifactRecord:
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


def format_artifact_name(asset: str, partition: str | None = None) -> str:
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

    def record(self, task: str, asset: str, partition: str | None = None) -> ArtifactRecord | None:
        """The record of a finished artifact, or None where there is none."""
        path = self.path(task, asset, partition)
        if (record := _read_file_record(path)) is not None:
            return record
        if partition is not None:
            return read_folder_record(self.folder(task, asset, partition))
        return None

    def good_record(self, task: str, asset: str, partition: str) -> ArtifactRecord | None:
        """The record of the latest version of a table that passed its blocking checks."""
        return _read_file_record(self._good_path(task, asset, partition))

    def _good_path(self, task: str, asset: str, partition: str) -> Path:
        path = self.path(task, asset, partition)
        record = _read_file_record(path)
        blocked = record is not None and record.extra.get("blocked")
        return path.parent / LAST_GOOD_FOLDER / path.name if blocked else path

    def scan_good(
        self, task: str, asset: str, partition: str, schema: pl.Schema, folder: Path
    ) -> tuple[pl.LazyFrame, ArtifactRecord] | None:
        """The latest version of a table that passed its blocking checks; None where there is none.

        Args:
            folder: holds on to this version, so that however often the query runs it reads the same rows.
        """
        path = self._good_path(task, asset, partition)
        held = folder / path.name
        try:
            os.link(path, held)
        except FileNotFoundError:
            return None
        except OSError:  # another file system
            shutil.copyfile(path, held)
        record = _read_file_record(held)
        return None if record is None else (_scan_checked(held, schema), record)

    def read(
        self, task: str, asset: str, partition: str | None, schema: pl.Schema
    ) -> tuple[pl.DataFrame, ArtifactRecord]:
        """A table and its record.

        Raises:
            DistillError: the table was never made.
            SchemaError: it does not have the declared columns.
        """
        record = self.record(task, asset, partition)
        if record is None:
            raise DistillError(
                f"{task}/{format_artifact_name(asset, partition)} has not been materialized yet. Run `distill run {task}`, or "  # noqa: E501
                f"materialize it before the assets that need it."
            )
        return _scan_checked(self.path(task, asset, partition), schema).collect(), record

    def write(self, task: str, frame: pl.DataFrame | pl.LazyFrame, record: ArtifactRecord) -> None:
        """Write a table. One of a slice that did not pass its checks is written beside its last good version."""
        path = self.path(task, record.asset, record.partition)
        if record.partition is not None and record.extra.get("blocked"):
            before = _read_file_record(path)
            if before is not None and not before.extra.get("blocked"):
                kept = path.parent / LAST_GOOD_FOLDER / path.name
                kept.parent.mkdir(exist_ok=True)
                # A copy and not a move: a crash before the new table is in place loses nothing.
                temporary = get_temporary_path(kept)
                shutil.copyfile(path, temporary)
                temporary.replace(kept)
        write_parquet(frame, path, {_METADATA_KEY: json.dumps(asdict(record))})

    def write_folder(
        self, folder: Path, record: Callable[[str], ArtifactRecord], fill: Callable[[Path], str]
    ) -> ArtifactRecord:
        """Let `fill` write into a temporary folder and return its data version; add the record; swap it in."""
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = get_temporary_path(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            made = record(fill(temporary))
            (temporary / RECORD_FILE).write_text(json.dumps(asdict(made), indent=1))
            swap_folder(temporary, folder)
            return made
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _read_file_record(path: Path) -> ArtifactRecord | None:
    return ArtifactRecord(**json.loads(pl.read_parquet_metadata(path)[_METADATA_KEY])) if path.is_file() else None


def _scan_checked(path: Path, schema: pl.Schema) -> pl.LazyFrame:
    frame = schemas.add_later_columns(pl.scan_parquet(path), schema)
    if dict(frame.collect_schema()) != dict(schema):
        raise schemas.SchemaError(f"{path} does not have the declared schema")
    return frame


def read_folder_record(folder: Path) -> ArtifactRecord | None:
    """The record in the folder of an artifact, or None where there is none.

    A folder that a killed process moved aside is put back first.
    """
    for _ in range(2):
        try:
            return ArtifactRecord(**json.loads((folder / RECORD_FILE).read_text()))
        except FileNotFoundError:
            if not restore_folder(folder):
                break
    return None


def merge_inputs(*parts: Mapping[str, str]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for part in parts:
        merged.update(part)
    return dict(sorted(merged.items()))
