"""The lake: one Parquet file (or folder) per asset and partition, each with a record of what it was made from.

The record is in the metadata of the Parquet file, or in `artifact.json` in the folder. Content and record change in one
rename, so they always agree.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import get_temporary_path, restore_folder, swap_folder
from distill_dagster.tables.parquet import write_parquet
from distill_dagster.tables.schemas import SchemaError

if TYPE_CHECKING:
    from distill_dagster.tables.object_lake.releases import SharedReleases

RECORD_FILE = "artifact.json"
LAST_GOOD_FOLDER = ".good"
"""The folder that keeps the last good versions of slices whose newest table failed its checks."""
GROUP_ROWS = 16_384
"""Rows of a row group of a table: the stages that read large tables hold several groups at a time."""
_METADATA_KEY = "distill"


@dataclass(frozen=True)
class ArtifactRecord:
    """What an artifact is, and what it was made from.

    `inputs` maps the name of each upstream artifact (see `format_artifact_name`) to the data version that was read.
    `missing_rows` counts prompts without an answer. `extra` contains the figures of the stage.
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
    """The name of an artifact: `asset` or `asset[partition]`."""
    return asset if partition is None else f"{asset}[{partition}]"


class Lake:
    """Reads and writes the artifacts of all tasks below one folder; reports have a folder of their own."""

    def __init__(self, root: Path, reports: Path) -> None:
        self.root, self.reports = root, reports

    def get_path(self, task: str, asset: str, partition: str | None = None) -> Path:
        """The Parquet file of a table. Unpartitioned tables are next to the folders of partitioned ones."""
        base = self.root / task
        return base / f"{asset}.parquet" if partition is None else base / asset / f"{partition}.parquet"

    def get_folder(self, task: str, asset: str, partition: str) -> Path:
        """The folder of an artifact that is not a table: an adapter or a report."""
        return self.reports / task / partition if asset == "eval_report" else self.root / task / asset / partition

    def read_record(self, task: str, asset: str, partition: str | None = None) -> ArtifactRecord | None:
        """The record of a finished artifact, or None if there is none."""
        path = self.get_path(task, asset, partition)
        if (record := _read_file_record(path)) is not None:
            return record
        if partition is not None:
            return read_folder_record(self.get_folder(task, asset, partition))
        return None

    def list_records(self, task: str) -> Mapping[str, ArtifactRecord] | None:
        """The records of all artifacts of a task by artifact name; None where reading one by one is as fast."""
        return None

    def read_good_record(self, task: str, asset: str, partition: str) -> ArtifactRecord | None:
        """The record of the latest version of a table that passed its blocking checks."""
        return _read_file_record(self._get_good_path(task, asset, partition))

    def _get_good_path(self, task: str, asset: str, partition: str) -> Path:
        path = self.get_path(task, asset, partition)
        record = _read_file_record(path)
        blocked = record is not None and record.extra.get("blocked")
        return path.parent / LAST_GOOD_FOLDER / path.name if blocked else path

    def prefetch(self, task: str, asset: str, partitions: Iterable[str]) -> None:
        """Get the tables of many partitions ready for `scan_good` and `get_path`. Here they are always."""

    def scan_good(
        self, task: str, asset: str, partition: str, schema: pl.Schema, folder: Path
    ) -> tuple[pl.LazyFrame, ArtifactRecord] | None:
        """The latest version of a table that passed its blocking checks, or None if there is none.

        Args:
            folder: keeps a link to this version, so that the query reads the same rows each time it runs.
        """
        path = self._get_good_path(task, asset, partition)
        kept = folder / path.name
        try:
            os.link(path, kept)
        except FileNotFoundError:
            return None
        except OSError:  # another file system
            shutil.copyfile(path, kept)
        record = _read_file_record(kept)
        return None if record is None else (scan_table_file(kept, schema), record)

    def read(
        self, task: str, asset: str, partition: str | None, schema: pl.Schema
    ) -> tuple[pl.DataFrame, ArtifactRecord]:
        """A table and its record.

        Raises:
            DistillError: the table does not exist.
            SchemaError: it does not have the declared columns.
        """
        record = self.read_record(task, asset, partition)
        if record is None:
            raise build_missing_error(task, asset, partition)
        return scan_table_file(self.get_path(task, asset, partition), schema).collect(), record

    def note_version(self, task: str, asset: str, partition: str | None) -> None:
        """Note the version that is there before work begins, so that a later write replaces no other one.

        In a local folder the last writer wins: the processes of one machine take turns in the pools of Dagster.
        """

    def refresh_reports(self, task: str, students: Iterable[str]) -> None:
        """Bring the folders of reports up to date. Here they always are."""

    def merge_log(self, task: str, path: Path) -> None:
        """Exchange the lines of a log with other machines. Here there are none."""

    def share_releases(self, task: str, folder: Path, manifest: str) -> SharedReleases | None:
        """The releases of a task as other machines see them; None if only this machine has them."""
        return None

    def write(self, task: str, frame: pl.DataFrame | pl.LazyFrame, record: ArtifactRecord) -> None:
        """Write a table with its record. If a slice fails its blocking checks, its last good version is kept."""
        path = self.get_path(task, record.asset, record.partition)
        if record.partition is not None and record.extra.get("blocked"):
            before = _read_file_record(path)
            if before is not None and not before.extra.get("blocked"):
                kept = path.parent / LAST_GOOD_FOLDER / path.name
                kept.parent.mkdir(exist_ok=True)
                # A copy, not a move: a crash before the new table is in place loses nothing.
                temporary = get_temporary_path(kept)
                shutil.copyfile(path, temporary)
                temporary.replace(kept)
        write_table_file(frame, path, record)

    def write_folder(
        self,
        task: str,
        asset: str,
        partition: str,
        build_record: Callable[[str], ArtifactRecord],
        fill: Callable[[Path], str],
    ) -> ArtifactRecord:
        """Write a folder with its record, all or nothing.

        Args:
            build_record: builds the record from the data version.
            fill: writes the files into a temporary folder and returns their data version.
        """
        folder = self.get_folder(task, asset, partition)
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = get_temporary_path(folder)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        try:
            finished = build_record(fill(temporary))
            write_folder_record(temporary, finished)
            swap_folder(temporary, folder)
            return finished
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _read_file_record(path: Path) -> ArtifactRecord | None:
    return ArtifactRecord(**json.loads(pl.read_parquet_metadata(path)[_METADATA_KEY])) if path.is_file() else None


def write_table_file(frame: pl.DataFrame | pl.LazyFrame, path: Path, record: ArtifactRecord) -> None:
    """Write a table with its record into a Parquet file, in one rename."""
    write_parquet(frame, path, {_METADATA_KEY: json.dumps(asdict(record))}, GROUP_ROWS)


def build_missing_error(task: str, asset: str, partition: str | None) -> DistillError:
    """The error of a reader whose input was never made."""
    return DistillError(
        f"{task}/{format_artifact_name(asset, partition)} has not been materialized yet. Run "
        f"`distill run {task}`, or materialize it before the assets that read it."
    )


def scan_table_file(path: Path, schema: pl.Schema) -> pl.LazyFrame:
    """The rows of a table's file.

    Raises:
        SchemaError: it does not have the declared columns.
    """
    frame = pl.scan_parquet(path)
    if dict(frame.collect_schema()) != dict(schema):
        raise SchemaError(
            f"{path} does not have the columns that this version declares: another version wrote it. Run `distill run`."
        )
    return frame


def write_folder_record(folder: Path, record: ArtifactRecord) -> None:
    """Write the record into the folder of an artifact that is not in place yet."""
    (folder / RECORD_FILE).write_text(json.dumps(asdict(record), indent=1))


def read_folder_record(folder: Path) -> ArtifactRecord | None:
    """The record in the folder of an artifact, or None if there is none.

    A folder that a killed process moved aside is put back first.
    """
    for _ in range(2):
        try:
            return ArtifactRecord(**json.loads((folder / RECORD_FILE).read_text()))
        except FileNotFoundError:
            if not restore_folder(folder):
                break
    return None
