"""A log of JSON lines that several machines append to: each line is an object of its own, under its hash."""

from __future__ import annotations

from pathlib import Path

from distill_dagster.core.files import append_durably, lock_file
from distill_dagster.core.hashing import hash_strings
from distill_dagster.tables.object_lake.bucket import Bucket
from distill_dagster.tables.object_lake.pointers import request_all


def merge_lines(bucket: Bucket, prefix: str, path: Path) -> None:
    """Give the lines of a local file to other machines, and append theirs to it.

    Args:
        prefix: the prefix of the log's objects, with a slash at its end.
        path: the local file. Whoever appends to it holds the lock `.<name>.lock` next to it.
    """
    with lock_file(path.with_name(f".{path.name}.lock")):
        own = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        lines = {
            f"{prefix}{hash_strings(line.decode(errors='replace'))}.jsonl": line for line in own if line.endswith(b"\n")
        }
        shared = {listed.key for listed in bucket.list_objects(prefix)}
        request_all(lambda key: bucket.put(key, lines[key]), lines.keys() - shared)
        found = request_all(bucket.read, sorted(shared - lines.keys()))
        if new := b"".join(content[0] for content in found if content is not None):
            append_durably(path, new)
