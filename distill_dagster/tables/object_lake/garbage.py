"""Remove objects that no pointer names: versions that were replaced, and those of writers that lost or died."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from distill_dagster.core.progress import report_progress
from distill_dagster.tables.object_lake.bucket import Bucket
from distill_dagster.tables.object_lake.cache import OBJECTS
from distill_dagster.tables.object_lake.pointers import POINTERS, Pointers

MIN_AGE = timedelta(hours=1)
"""A writer uploads before its pointer names the objects, and clocks differ: younger objects always stay."""
DELETE_BATCH = 1_000


@dataclass(frozen=True)
class Garbage:
    """What was removed, and what is in use."""

    objects: int
    bytes: int
    kept_objects: int
    kept_bytes: int


def remove_garbage(bucket: Bucket, pointers: Pointers, older_than: timedelta) -> Garbage:
    """Remove all objects of this age that no pointer names.

    A reader that followed a pointer just before it changed finds its objects gone, and follows it again.
    """
    before = datetime.now(UTC) - max(older_than, MIN_AGE)
    # Objects first: what a pointer names later than this was uploaded later, or was named by it all the time.
    report_progress("listing objects", 0, 0)
    listed = bucket.list_objects(f"{OBJECTS}/")
    named = set()
    for pointer in pointers.read_all(f"{POINTERS}/").values():
        versions = [pointer.current] if pointer.good is None else [pointer.current, pointer.good]
        named |= {f"{version.objects}/{name}" for version in versions for name in version.files}
    removed = [found for found in listed if found.modified < before and found.key not in named]
    for start in range(0, len(removed), DELETE_BATCH):
        report_progress("removing objects", start, len(removed))
        bucket.delete([found.key for found in removed[start : start + DELETE_BATCH]])
    freed = sum(found.bytes for found in removed)
    return Garbage(len(removed), freed, len(listed) - len(removed), sum(found.bytes for found in listed) - freed)
