"""A lake whose artifacts are in an object store, and whose readers see local files."""

from __future__ import annotations

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from distill_dagster.core.files import get_temporary_path, link_files, swap_folder
from distill_dagster.core.hashing import hash_content
from distill_dagster.tables.lake import (
    RECORD_FILE,
    ArtifactRecord,
    Lake,
    build_missing_error,
    format_artifact_name,
    read_folder_record,
    scan_table_file,
    write_folder_record,
    write_table_file,
)
from distill_dagster.tables.object_lake.bucket import Bucket, ObjectMissingError
from distill_dagster.tables.object_lake.cache import OBJECTS, WRITING, LakeCache
from distill_dagster.tables.object_lake.lines import merge_lines
from distill_dagster.tables.object_lake.pointers import (
    POINTERS,
    Pointer,
    Pointers,
    StoredVersion,
    list_files,
    request_all,
)
from distill_dagster.tables.object_lake.releases import SharedReleases
from distill_dagster.tables.object_lake.transfer import PARALLEL_FILES, TransferReporter

NO_PARTITION = "-"
"""Where the name of a partition is, for artifacts without. No slice and no student has this name."""
READ_ATTEMPTS = 3
"""So often does a reader follow a pointer again whose objects are gone: they were replaced and removed meanwhile."""


class ObjectLake(Lake):
    """The artifacts of all tasks below one `s3://BUCKET/PREFIX`.

        pointers/<task>/<asset>/<partition>.json               the pointer of an artifact; `-.json` without partition
        objects/<task>/<asset>/<partition>/<version>/<file>    its files, which never change

    Args:
        url: address of the lake.
        cache: the folder for local copies, of this and other lakes.
        reports: the folder of reports, which are copied there when they are read or made.
        most_bytes: what the local copies may take.
    """

    def __init__(self, url: str, cache: Path, reports: Path, most_bytes: int) -> None:
        super().__init__(cache / hash_content(url)[:12], reports)
        self.bucket = Bucket(url)
        self.cache = LakeCache(self.root, most_bytes)
        self.pointers = Pointers(self.bucket, self.root)
        self._replaced: dict[str, Pointer | None] = {}
        """The pointers that coming writes replace, by key."""
        self._fetched: dict[str, Pointer | None] = {}
        """Pointers that `prefetch` read, for the next reader of each."""

    def get_path(self, task: str, asset: str, partition: str | None = None) -> Path:
        """The local copy of a table's file, downloaded if it is not here; a file that does not exist if none was made.

        It has the name of one version: what this path contains never changes.
        """
        name = _get_table_name(asset, partition)
        found = self._follow(task, asset, partition, name)
        return (found[0] if found else self.cache.get_folder(_get_prefix(task, asset, partition))) / name

    def get_folder(self, task: str, asset: str, partition: str) -> Path:
        """The local copy of an artifact that is not a table; a folder that does not exist if none was made."""
        if asset == "eval_report":
            return self._refresh_report(task, partition)
        found = self._follow(task, asset, partition, RECORD_FILE)
        return found[0] if found else self.cache.get_folder(_get_prefix(task, asset, partition))

    def read_record(self, task: str, asset: str, partition: str | None = None) -> ArtifactRecord | None:
        pointer = self._read_pointer(task, asset, partition)
        return None if pointer is None else ArtifactRecord(**pointer.current.record)

    def read_good_record(self, task: str, asset: str, partition: str) -> ArtifactRecord | None:
        pointer = self._read_pointer(task, asset, partition)
        good = None if pointer is None else pointer.find_good()
        return None if good is None else ArtifactRecord(**good.record)

    def list_records(self, task: str) -> Mapping[str, ArtifactRecord]:
        """The records of all artifacts of a task by artifact name, with few requests."""
        records = {}
        for key, pointer in self.pointers.read_all(f"{POINTERS}/{task}/").items():
            asset, partition = key.removesuffix(".json").split("/")[-2:]
            name = format_artifact_name(asset, None if partition == NO_PARTITION else partition)
            records[name] = ArtifactRecord(**pointer.current.record)
        return records

    def prefetch(self, task: str, asset: str, partitions: Iterable[str]) -> None:
        """Download the last good tables of many partitions at the same time, for the next reader of each."""
        pointers = self.pointers.read_all(f"{POINTERS}/{task}/")
        wanted = {key: pointers.get(key) for key in (_get_pointer_key(task, asset, one) for one in partitions)}
        self._fetched |= wanted
        good = [version for pointer in wanted.values() if pointer and (version := pointer.find_good())]
        absent = [version for version in good if self.cache.find(version.objects, version.files) is None]
        reporter = TransferReporter(f"downloading {asset}", len(absent))

        def fetch(version: StoredVersion) -> None:
            # If it was replaced and removed meanwhile, its reader follows the pointer again.
            with contextlib.suppress(ObjectMissingError):
                self._fetch(version)
            reporter.add()

        request_all(fetch, absent, PARALLEL_FILES)

    def scan_good(
        self, task: str, asset: str, partition: str, schema: pl.Schema, folder: Path
    ) -> tuple[pl.LazyFrame, ArtifactRecord] | None:
        name = _get_table_name(asset, partition)
        found = self._follow(task, asset, partition, name, is_good=True)
        if found is None:
            return None
        # The name of the partition, not of the version: the folder has one version of each.
        kept = folder / name
        _link_or_copy(found[0] / name, kept)
        return scan_table_file(kept, schema), ArtifactRecord(**found[1].record)

    def read(
        self, task: str, asset: str, partition: str | None, schema: pl.Schema
    ) -> tuple[pl.DataFrame, ArtifactRecord]:
        name = _get_table_name(asset, partition)
        found = self._follow(task, asset, partition, name)
        if found is None:
            raise build_missing_error(task, asset, partition)
        return scan_table_file(found[0] / name, schema).collect(), ArtifactRecord(**found[1].record)

    def note_version(self, task: str, asset: str, partition: str | None) -> None:
        key = _get_pointer_key(task, asset, partition)
        self._replaced[key] = self.pointers.read(key)

    def write(self, task: str, frame: pl.DataFrame | pl.LazyFrame, record: ArtifactRecord) -> None:
        name = _get_table_name(record.asset, record.partition)

        def fill(folder: Path) -> ArtifactRecord:
            write_table_file(frame, folder / name, record)
            return record

        self._publish(task, record.asset, record.partition, fill)

    def write_folder(
        self,
        task: str,
        asset: str,
        partition: str,
        build_record: Callable[[str], ArtifactRecord],
        fill: Callable[[Path], str],
    ) -> ArtifactRecord:
        def fill_with_record(folder: Path) -> ArtifactRecord:
            finished = build_record(fill(folder))
            write_folder_record(folder, finished)
            return finished

        record = self._publish(task, asset, partition, fill_with_record)
        if asset == "eval_report":
            self._refresh_report(task, partition)
        return record

    def merge_log(self, task: str, path: Path) -> None:
        merge_lines(self.bucket, f"logs/{task}/{path.stem}/", path)

    def share_releases(self, task: str, folder: Path, manifest: str) -> SharedReleases:
        return SharedReleases(self, task, folder, manifest)

    def refresh_reports(self, task: str, students: Iterable[str]) -> None:
        for student in students:
            self._refresh_report(task, student)

    def _publish(
        self, task: str, asset: str, partition: str | None, fill: Callable[[Path], ArtifactRecord]
    ) -> ArtifactRecord:
        key, name = _get_pointer_key(task, asset, partition), format_artifact_name(asset, partition)
        before = self._replaced[key] if key in self._replaced else self.pointers.read(key)
        objects = f"{_get_prefix(task, asset, partition)}/{_make_version_name()}"
        temporary = self.root / WRITING / secrets.token_hex(8)
        temporary.mkdir(parents=True)
        try:
            record = fill(temporary)
            files = list_files(temporary)
            version = StoredVersion(objects, files, asdict(record))
            place = self.cache.add(objects, files, lambda folder: link_files(temporary, folder))
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        try:
            self.upload(version, place)
            self._replaced[key] = self.pointers.replace(key, before, version, f"{task}/{name}")
        except BaseException:
            self.cache.remove(objects)
            raise
        return record

    def upload(self, version: StoredVersion, folder: Path) -> None:
        """Put the files of a version as objects. Nothing names them yet."""
        reporter = TransferReporter("uploading files", len(version.files))

        def upload_file(name: str) -> None:
            self.bucket.upload(f"{version.objects}/{name}", folder / name)
            reporter.add()

        request_all(upload_file, version.files, PARALLEL_FILES)

    def _read_pointer(self, task: str, asset: str, partition: str | None) -> Pointer | None:
        return self.pointers.read(_get_pointer_key(task, asset, partition))

    def _follow(
        self, task: str, asset: str, partition: str | None, file: str, is_good: bool = False
    ) -> tuple[Path, StoredVersion] | None:
        """The current or last good version of an artifact and its local folder, or None if there is none.

        Args:
            file: a file that the version must have: a table has none of a folder's files, and the reverse.
        """
        key = _get_pointer_key(task, asset, partition)
        for left in reversed(range(READ_ATTEMPTS)):
            pointer = self._fetched.pop(key) if key in self._fetched else self.pointers.read(key)
            version = None if pointer is None else pointer.find_good() if is_good else pointer.current
            if version is None or file not in version.files:
                return None
            try:
                return self._fetch(version), version
            except ObjectMissingError:
                if not left:
                    raise
        raise AssertionError

    def _fetch(self, version: StoredVersion) -> Path:
        """The local folder of a version; its files are downloaded if they are not here."""
        if (here := self.cache.find(version.objects, version.files)) is not None:
            return here

        def fill(folder: Path) -> None:
            reporter = TransferReporter("downloading files", len(version.files))

            def download(name: str) -> None:
                path, file = folder / name, version.files[name]
                path.parent.mkdir(parents=True, exist_ok=True)
                self.bucket.download(f"{version.objects}/{name}", path, file["bytes"], file["sha256"])
                reporter.add()

            request_all(download, version.files, PARALLEL_FILES)

        return self.cache.add(version.objects, version.files, fill)

    def _refresh_report(self, task: str, student: str) -> Path:
        """The folder of a report, as it is in the lake."""
        target = super().get_folder(task, "eval_report", student)
        record = self.read_record(task, "eval_report", student)
        if record is None or read_folder_record(target) == record:
            return target
        found = self._follow(task, "eval_report", student, RECORD_FILE)
        if found is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = get_temporary_path(target)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            link_files(found[0], temporary)
            swap_folder(temporary, target)
        return target


def _get_table_name(asset: str, partition: str | None) -> str:
    return f"{partition or asset}.parquet"


def _get_prefix(task: str, asset: str, partition: str | None) -> str:
    return f"{OBJECTS}/{task}/{asset}/{partition or NO_PARTITION}"


def _get_pointer_key(task: str, asset: str, partition: str | None) -> str:
    return f"{POINTERS}/{task}/{asset}/{partition or NO_PARTITION}.json"


def _make_version_name() -> str:
    """A name that nobody else uses, in the order of time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(6)}"


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
