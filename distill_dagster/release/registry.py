"""The registry of releases: numbered folders that never change, and a pointer to the current one.

    releases/support_triage/1/manifest.json, …
    releases/support_triage/2/…
    releases/support_triage/current          a file with one line: 2

A release is written under a hidden name, made durable, and then renamed. So a process that is killed leaves no half
release. One process at a time releases a task.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import lock_file, sync_folder, write_atomically
from distill_dagster.core.hashing import hash_file
from distill_dagster.core.progress import report_progress
from distill_dagster.release.types import Export, LeftOut, Parity

MANIFEST_FILE = "manifest.json"
CURRENT_FILE = "current"
FORMAT = 1
"""The version of the manifest. A release of a later version is not read."""
_UNFINISHED = ".writing"
_LOCK = ".lock"


@dataclass(frozen=True)
class Release:
    """A released student: its folder, and what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    @property
    def task(self) -> str:
        return str(self.manifest["task"])

    @property
    def number(self) -> int:
        return int(self.manifest["number"])

    @property
    def student(self) -> str:
        return str(self.manifest["student"])

    @property
    def bytes(self) -> int:
        """The size of all files, without the manifest."""
        return sum(file["bytes"] for file in self.manifest["files"].values())

    @cached_property
    def exports(self) -> tuple[Export, ...]:
        """The formats in the release."""
        return tuple(_read_export(value) for value in self.manifest["exports"])

    @cached_property
    def left_out(self) -> tuple[LeftOut, ...]:
        """The formats that are not in it, each with the reason."""
        return tuple(LeftOut(**value) for value in self.manifest["left_out"])

    def find_export(self, name: str) -> Export:
        """The export with this name.

        Raises:
            DistillError: the release has no such export.
        """
        for export in self.exports:
            if export.name == name:
                return export
        reason = next((f" {one.reason}" for one in self.left_out if one.name == name), "")
        known = ", ".join(export.name for export in self.exports)
        raise DistillError(f"{self.path} has no export {name!r}.{reason} Use one of {known}.")


def _read_export(value: dict[str, Any]) -> Export:
    parity = tuple(Parity(**one) for one in value["parity"])
    return Export(**value | {"files": tuple(value["files"]), "parity": parity})


class Registry:
    """The releases of all tasks, in the folder `releases`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get_folder(self, task: str) -> Path:
        """The folder of a task's releases."""
        return self.root / task

    def list_numbers(self, task: str) -> list[int]:
        """The numbers of a task's releases in ascending order."""
        folder = self.get_folder(task)
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isascii() and name.isdigit() and name == str(int(name)))

    def list_releases(self, task: str) -> list[Release]:
        """A task's releases, the oldest first.

        Raises:
            DistillError: a manifest cannot be read.
        """
        return [self.read(task, number) for number in self.list_numbers(task)]

    def read_current_number(self, task: str) -> int | None:
        """The number of the current release, or None if nothing was released.

        Raises:
            DistillError: the pointer names no release.
        """
        file = self.get_folder(task) / CURRENT_FILE
        try:
            text = file.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            # A process that was killed between the rename and the pointer leaves the first release without a pointer.
            return max(self.list_numbers(task), default=None)
        numbers = self.list_numbers(task)
        if text not in map(str, numbers):
            raise DistillError(
                f"{file} says {text!r}, which is no release of {task}. Choose one with `distill releases {task} --use "
                f"N`: {', '.join(map(str, numbers)) or 'there is none yet'}."
            )
        return int(text)

    def read(self, task: str, number: int | None = None) -> Release:
        """A release, by default the current one.

        Raises:
            DistillError: there is no such release, or its manifest cannot be read.
        """
        known = self.list_numbers(task)
        if not known:
            raise DistillError(f"{task} has no release yet. Make one with `distill release {task}`.")
        number = self.read_current_number(task) if number is None else number
        if number is None or number not in known:
            raise DistillError(f"{task} has no release {number}. Use one of {', '.join(map(str, known))}.")
        folder = self.get_folder(task) / str(number)
        return Release(folder, _read_manifest(folder))

    def use(self, task: str, number: int) -> Release:
        """Make a release the current one.

        Raises:
            DistillError: there is no such release, or a file of it is not as it was released.
        """
        with self._lock(task):
            release = self.read(task, number)
            verify_release(release)
            write_atomically(self.get_folder(task) / CURRENT_FILE, f"{number}\n")
            return release

    def publish(self, task: str, fill: Callable[[Path, int], dict[str, Any]]) -> Release:
        """Make a new release and make it the current one, all or nothing.

        Args:
            fill: writes the files into a folder for the release with this number, and returns the manifest's fields
                without `number`, `created_at` and `files`.

        Raises:
            DistillError: another process releases this task. Errors of `fill` leave nothing behind.
        """
        folder = self.get_folder(task)
        with self._lock(task):
            # Whoever holds the lock is alone, so what lies here was left by a process that was killed.
            _remove(folder / _UNFINISHED)
            # A name of its own: a converter that outlives its killed process must not write into another release.
            unfinished = folder / _UNFINISHED / secrets.token_hex(4)
            unfinished.mkdir(parents=True)
            number = max(self.list_numbers(task), default=0) + 1
            try:
                fields = fill(unfinished, number)
                report_progress("hashing the files of the release", 0, 0)
                manifest = {"format": FORMAT, "task": task, "number": number} | fields
                manifest["created_at"] = datetime.now(UTC).isoformat(timespec="seconds")
                manifest["files"] = _list_files(unfinished)
                text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
                (unfinished / MANIFEST_FILE).write_text(text, encoding="utf-8")
                _make_durable(unfinished)
                unfinished.rename(folder / str(number))
            finally:
                _remove(folder / _UNFINISHED)
            sync_folder(folder)
            write_atomically(folder / CURRENT_FILE, f"{number}\n")
            return self.read(task, number)

    def _lock(self, task: str) -> AbstractContextManager[None]:
        self.get_folder(task).mkdir(parents=True, exist_ok=True)
        busy = f"Another process is releasing {task}. Wait for it to end, then try again."
        return lock_file(self.get_folder(task) / _LOCK, timeout_s=0, busy=busy)


def verify_release(release: Release) -> None:
    """Check that a release is as it was released.

    Raises:
        DistillError: a file is missing, was changed or was added.
    """
    if problems := find_damage(release):
        raise DistillError(
            f"Release {release.number} of {release.task} is not as it was released: {'; '.join(problems[:5])}. Release "
            f"again with `distill release {release.task} --student {release.student}`, or go back to another one with "
            f"`distill releases {release.task} --use N`."
        )


def find_damage(release: Release) -> list[str]:
    """Compare every file of a release with its sha256. Returns a clause for each that is missing, changed or new."""
    files: dict[str, dict[str, Any]] = release.manifest["files"]
    found = {path.relative_to(release.path).as_posix() for path in release.path.rglob("*") if path.is_file()}
    problems = [f"{name} is not in the manifest" for name in sorted(found - files.keys() - {MANIFEST_FILE})]
    for number, (name, file) in enumerate(files.items()):
        report_progress(f"checking the files of release {release.number}", number, len(files))
        path = release.path / name
        if name not in found:
            problems.append(f"{name} is missing")
        elif path.stat().st_size != file["bytes"] or hash_file(path) != file["sha256"]:
            problems.append(f"{name} was changed")
    return problems


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / MANIFEST_FILE
    remedy = f"Delete {folder} if it is not a release, or restore the file from a backup."
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DistillError(f"{file} cannot be read: {error}. {remedy}") from None
    if version != FORMAT:
        raise DistillError(f"{file} has format {version}, and this version reads {FORMAT}. Update distill-dagster.")
    return dict(manifest)


def _list_files(folder: Path) -> dict[str, dict[str, Any]]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": hash_file(path)} for path in paths
    }


def _make_durable(folder: Path) -> None:
    """Write all files below a folder to disk, and make them read-only."""
    for path in folder.rglob("*"):
        if path.is_dir():
            sync_folder(path)
            continue
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        path.chmod(0o555 if os.access(path, os.X_OK) else 0o444)
    sync_folder(folder)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
