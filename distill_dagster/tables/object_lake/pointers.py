"""Pointer objects: which immutable files an artifact consists of now, and their conditional replacement."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import write_atomically
from distill_dagster.core.hashing import hash_file
from distill_dagster.tables.object_lake.bucket import Bucket, LakeError, ObjectChangedError

CHECKED = "conditional-puts"
POINTERS, SNAPSHOTS = "pointers", "snapshots"
SHARE_FROM = 100
"""Pointers that a process had to read one by one, from which on it shares them with new machines."""
FORMAT = 1
"""The version of pointer objects. A pointer of a later version is not read."""
REPLACE_ATTEMPTS = 5
PARALLEL_REQUESTS = 32


class ConflictError(DistillError):
    """Another writer replaced the artifact first."""


def _describe_writer() -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return {"host": socket.gethostname(), "pid": os.getpid(), "at": now}


@dataclass(frozen=True)
class StoredVersion:
    """One version of an artifact: the prefix of its objects, their sizes and hashes by file name, and its record."""

    objects: str
    files: dict[str, dict[str, Any]]
    record: dict[str, Any]
    writer: dict[str, Any] = field(default_factory=_describe_writer)

    @property
    def is_blocked(self) -> bool:
        return bool(self.record.get("extra", {}).get("blocked"))

    def has_content_of(self, other: StoredVersion) -> bool:
        """Whether both were made from the same inputs by the same code, with the same result."""
        return all(
            self.record.get(name) == other.record.get(name) for name in ("data_version", "code_version", "inputs")
        )


@dataclass(frozen=True)
class Pointer:
    """What a pointer object says: the current version, and the last good one if the current one is blocked."""

    current: StoredVersion
    good: StoredVersion | None = None
    etag: str = ""

    def find_good(self) -> StoredVersion | None:
        """The latest version that passed its blocking checks."""
        return self.good if self.current.is_blocked else self.current

    def to_bytes(self) -> bytes:
        content = {"format": FORMAT, "current": asdict(self.current), "good": self.good and asdict(self.good)}
        return json.dumps(content, ensure_ascii=False).encode()

    @classmethod
    def from_bytes(cls, content: bytes | str, etag: str, key: str) -> Pointer:
        """Read a pointer object.

        Raises:
            LakeError: it was written by a later version, or by something else.
        """
        try:
            value = json.loads(content)
            if value["format"] != FORMAT:
                raise LakeError(f"{key} has format {value['format']}, this version reads {FORMAT}. Update it.")
            current, good = StoredVersion(**value["current"]), value["good"] and StoredVersion(**value["good"])
            _check_names(current, *([good] if good else []))
            return cls(current, good, etag)
        except (ValueError, KeyError, TypeError) as error:
            remedy = "Delete this object to make the artifact again, or restore it from a backup."
            raise LakeError(f"{key} is no pointer of a lake: {error!r}. {remedy}") from None


class Pointers:
    """Reads and replaces the pointer objects of a lake."""

    def __init__(self, bucket: Bucket, cache: Path) -> None:
        self.bucket, self.cache = bucket, cache

    def read(self, key: str) -> Pointer | None:
        """A pointer as it is now, with one request."""
        found = self.bucket.read(key)
        return None if found is None else Pointer.from_bytes(*found, key)

    def read_all(self, prefix: str) -> dict[str, Pointer]:
        """All pointers below a prefix by key: one request per 1,000 of them, and one for each that changed since.

        What was read before is in a local file, for a new machine in one object. Both may be old: the listing tells.
        """
        name = f"{prefix.strip('/').replace('/', '.')}.json"
        kept_file, kept_object = self.cache / name, f"{SNAPSHOTS}/{name}"
        kept: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError):
            kept = json.loads(kept_file.read_text(encoding="utf-8"))
        if not kept and (shared := self.bucket.read(kept_object)) is not None:
            kept = json.loads(shared[0])
        now: dict[str, list[str]] = {}
        changed: list[str] = []
        for listed in self.bucket.list_objects(prefix):
            if kept.get(listed.key, [""])[0] == listed.etag:
                now[listed.key] = kept[listed.key]
            else:
                changed.append(listed.key)
        for key, found in zip(changed, request_all(self.bucket.read, changed), strict=True):
            if found is not None:
                now[key] = [found[1], found[0].decode()]
        if now != kept or not kept_file.exists():
            content = json.dumps(now, ensure_ascii=False)
            write_atomically(kept_file, content)
            if len(changed) >= SHARE_FROM:
                self.bucket.put(kept_object, content.encode())
        return {key: Pointer.from_bytes(content, etag, key) for key, (etag, content) in now.items()}

    def replace(self, key: str, before: Pointer | None, version: StoredVersion, name: str) -> Pointer:
        """Let a pointer name a new version, if it still names the version that the writer saw before.

        A put whose response was lost is recognized by the name of its objects. A writer that lost against one with the
        same content has nothing to add.

        Raises:
            ConflictError: another writer was first.
            LakeError: the store does not answer.
        """
        require_conditional_puts(self.bucket)
        good = None
        if version.is_blocked and before is not None:
            good = before.find_good()
        new = Pointer(version, good)
        for left in reversed(range(REPLACE_ATTEMPTS)):
            try:
                return replace(new, etag=self.bucket.replace(key, new.to_bytes(), before.etag if before else None))
            except LakeError as error:
                found = self.read(key)
                if found is not None and found.current.objects == version.objects:
                    return found
                if (found.etag if found else None) == (before.etag if before else None):
                    # Nobody was faster: the store refuses or fails for another reason, such as two puts at once.
                    if left and isinstance(error, ObjectChangedError):
                        continue
                    raise
                if found is not None and found.current.has_content_of(version):
                    return found
                raise ConflictError(_describe_conflict(name, found)) from None
        raise AssertionError


def _check_names(*versions: StoredVersion) -> None:
    """Check that no name leaves its folder: a bucket may have been written by others."""
    for version in versions:
        for path in map(PurePosixPath, (version.objects, *version.files)):
            if path.is_absolute() or ".." in path.parts or "\\" in str(path):
                raise ValueError(f"the name {str(path)!r} leaves its folder")


def _describe_conflict(name: str, found: Pointer | None) -> str:
    if found is None:
        return f"{name} was removed from the lake while this process made it. Run the command again."
    writer = found.current.writer
    return (
        f"{name} was written by process {writer['pid']} on {writer['host']} at {writer['at']}, while this process made "
        "it from what was there before. That version stays. Run the command again: it makes only what is still stale."
    )


_checked_urls: set[str] = set()


def require_conditional_puts(bucket: Bucket) -> None:
    """Check once per lake that its server refuses a put whose condition is not met.

    Raises:
        DistillError: it does not.
    """
    if bucket.url in _checked_urls:
        return
    if bucket.read(CHECKED) is None:
        _check_conditions(bucket)
        bucket.put(CHECKED, b"This server refuses a put whose condition is not met.")
    _checked_urls.add(bucket.url)


def _check_conditions(bucket: Bucket) -> None:
    probe = f"{CHECKED}.{secrets.token_hex(8)}"
    try:
        etag = bucket.replace(probe, b"1", None)
        bucket.replace(probe, b"2", etag)
        for condition in (None, etag):  # it is there, and has another ETag
            with contextlib.suppress(ObjectChangedError):
                bucket.replace(probe, b"3", condition)
                raise DistillError(
                    f"The server of {bucket.url} ignores the conditions If-None-Match and If-Match of a put, so one "
                    "writer could undo the work of another. Use a server that has conditional puts."
                )
    finally:
        bucket.delete([probe])


def request_all(function: Callable[[Any], Any], items: Iterable[Any], most: int = PARALLEL_REQUESTS) -> list[Any]:
    """The results of a function for each item, in order; requests run at the same time."""
    todo = list(items)
    if len(todo) < 2:
        return [function(item) for item in todo]
    with ThreadPoolExecutor(min(most, len(todo)), thread_name_prefix="lake") as pool:
        return list(pool.map(function, todo))


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """The size in bytes, the sha256 and whether it is a program, for each file below a folder by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _describe_file(path) for path in paths}


def _describe_file(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path), "executable": os.access(path, os.X_OK)}
