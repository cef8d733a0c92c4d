"""Local copies of immutable objects: bounded, least recently used first out."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import lock_file

OBJECTS, WRITING = "objects", ".writing"
LEFTOVER_S = 30 * 86_400.0
"""What nobody finished writing in this time was left by a process that was killed. A training may take days."""
IN_USE_S = 3600.0
"""A version that was used in the last hour is not evicted: a query may still read it."""
CHECK_SHARE = 0.05
"""The bound is checked after this share of it was written."""


class LakeCache:
    """Versions of artifacts as local folders, under the names of their objects.

    Args:
        root: the folder.
        most_bytes: what the cache may take. Versions in use may exceed it.
    """

    def __init__(self, root: Path, most_bytes: int) -> None:
        self.root, self.most_bytes = root, most_bytes
        self._written: int | None = None

    def get_folder(self, objects: str) -> Path:
        """Where the files of a version are if they are here."""
        return self.root / objects

    def find(self, objects: str, files: Mapping[str, Mapping[str, Any]]) -> Path | None:
        """The folder of a version if all its files are here, and note that it is used."""
        folder = self.get_folder(objects)
        try:
            if all((folder / name).stat().st_size == file["bytes"] for name, file in files.items()):
                os.utime(folder)
                return folder
        except FileNotFoundError:
            pass
        return None

    def add(self, objects: str, files: Mapping[str, Mapping[str, Any]], fill: Callable[[Path], None]) -> Path:
        """Add a version, all or nothing. Two processes may add the same one."""
        folder = self.get_folder(objects)
        temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
        temporary.mkdir(parents=True)
        try:
            fill(temporary)
            try:
                temporary.rename(folder)
            except OSError:  # another process added it, or it is damaged
                if self.find(objects, files) is None:
                    shutil.rmtree(folder)
                    temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._note_written(sum(file["bytes"] for file in files.values()))
        return folder

    def remove(self, objects: str) -> None:
        """Remove a version."""
        shutil.rmtree(self.get_folder(objects), ignore_errors=True)

    def _note_written(self, size: int) -> None:
        if self._written is not None and self._written + size < CHECK_SHARE * self.most_bytes:
            self._written += size
            return
        self._written = 0
        try:
            with lock_file(self.root / ".evicting", timeout_s=0):
                self.evict()
        except DistillError:
            pass  # another process evicts

    def evict(self) -> int:
        """Remove the versions that were not used for the longest time until the bound is met. Returns their bytes."""
        versions = []
        for path in (self.root / OBJECTS).glob("*/*/*/*"):  # task, asset, partition, version
            with contextlib.suppress(FileNotFoundError):  # another process puts it in place
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                versions.append((path.stat().st_mtime, size, path))
        total, removed = sum(size for _, size, _ in versions), 0
        for used, size, path in sorted(versions):
            if total - removed <= self.most_bytes or used > time.time() - IN_USE_S:
                break
            shutil.rmtree(path, ignore_errors=True)
            removed += size
        for path in (self.root / WRITING).glob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - LEFTOVER_S:
                    shutil.rmtree(path, ignore_errors=True)
        return removed
