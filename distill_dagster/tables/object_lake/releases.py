"""Releases in an object store: their files, and the number of the current one.

Another machine gets the manifests first, so that it can list and compare releases, and the files of a release when it
serves it.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from distill_dagster.core.files import write_atomically
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.object_lake.pointers import POINTERS, Pointer, StoredVersion, list_files, request_all
from distill_dagster.tables.object_lake.transfer import PARALLEL_FILES, TransferReporter

if TYPE_CHECKING:
    from distill_dagster.tables.object_lake.lake import ObjectLake

RELEASED = "released"
CURRENT = "current"
FETCHING = ".fetching"


class SharedReleases:
    """The releases of one task, in the lake and in a local folder: `<number>/` for each, and the file `current`.

    Args:
        folder: the local folder of the task's releases.
        manifest: the name of the file that is fetched first.
    """

    def __init__(self, lake: ObjectLake, task: str, folder: Path, manifest: str) -> None:
        self.lake, self.task, self.folder, self.manifest = lake, task, folder, manifest

    def push(self, number: int) -> None:
        """Add a release that was made here, and make it the current one.

        Raises:
            ConflictError: another machine has made a release with this number. The one that was made here is removed.
        """
        place = self.folder / str(number)
        objects = f"objects/{self.task}/{RELEASED}/{number}/{secrets.token_hex(8)}"
        record = ArtifactRecord(RELEASED, str(number), objects, "1", {})
        version = StoredVersion(objects, list_files(place), asdict(record))
        try:
            self.lake.upload(version, place)
            self.lake.pointers.replace(self._get_key(number), None, version, f"release {number} of {self.task}")
        except BaseException:
            # What no other machine can see was not released.
            shutil.rmtree(place, ignore_errors=True)
            self.pull()
            raise
        self.use(number)

    def use(self, number: int) -> None:
        """Make a release the current one, for all machines. The last one to say so is right."""
        self.lake.bucket.put(self._get_current_key(), json.dumps({"number": number}).encode())

    def pull(self) -> None:
        """Get the manifests of the releases that are not here, and the number of the current one."""
        absent = {
            number: pointer.current
            for number, pointer in self._read_pointers().items()
            if not (self.folder / str(number)).exists()
        }
        request_all(lambda number: self._fetch(absent[number], number, [self.manifest]), absent)
        if (current := self.lake.bucket.read(self._get_current_key())) is not None:
            number = json.loads(current[0])["number"]
            write_atomically(self.folder / CURRENT, f"{number}\n")

    def complete(self, number: int) -> None:
        """Get the files of a release that are not here."""
        pointer = self._read_pointers().get(number)
        if pointer is not None:
            place = self.folder / str(number)
            absent = [name for name in pointer.current.files if not (place / name).exists()]
            if absent:
                self._fetch(pointer.current, number, absent)

    def _read_pointers(self) -> dict[int, Pointer]:
        found = self.lake.pointers.read_all(f"{POINTERS}/{self.task}/{RELEASED}/")
        return {int(Path(key).stem): pointer for key, pointer in found.items()}

    def _fetch(self, version: StoredVersion, number: int, names: Iterable[str]) -> None:
        """Download files under hidden names and move each into its place when it is whole. They are read-only."""
        place, wanted = self.folder / str(number), list(names)
        hidden = self.folder / FETCHING / secrets.token_hex(8)
        reporter = TransferReporter(f"downloading release {number}", len(wanted))

        def fetch(name: str) -> None:
            temporary, file = hidden / name, version.files[name]
            temporary.parent.mkdir(parents=True, exist_ok=True)
            self.lake.bucket.download(f"{version.objects}/{name}", temporary, file["bytes"], file["sha256"])
            temporary.chmod(0o555 if file["executable"] else 0o444)
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(place / name)
            reporter.add()

        try:
            request_all(fetch, wanted, PARALLEL_FILES)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def _get_key(self, number: int) -> str:
        return f"{POINTERS}/{self.task}/{RELEASED}/{number}.json"

    def _get_current_key(self) -> str:
        return f"releases/{self.task}/{CURRENT}.json"
