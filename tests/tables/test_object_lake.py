"""The parts of a lake in an object store that need no server: the local cache, and what a pointer may say."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from distill_dagster.config.deployment import LakeSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.pipeline.open_lake import build_lake
from distill_dagster.tables.lake import Lake
from distill_dagster.tables.object_lake import bucket, cache
from distill_dagster.tables.object_lake.cache import OBJECTS, LakeCache
from distill_dagster.tables.object_lake.pointers import Pointer, StoredVersion

FILES = {"t.parquet": {"bytes": 100, "sha256": ""}}


def test_the_cache_keeps_its_bound_and_what_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = LakeCache(tmp_path, 250)

    def fill(folder: Path) -> None:
        (folder / "t.parquet").write_bytes(b"x" * 100)

    def add(name: str, age_s: float) -> Path:
        folder = kept.add(f"{OBJECTS}/t/a/s/{name}", FILES, fill)
        os.utime(folder, (time.time() - age_s,) * 2)
        return folder

    folders = [add(str(number), age) for number, age in enumerate((9000, 7000, 8000, 0))]
    kept.evict()
    assert [folder.exists() for folder in folders] == [False, True, False, True]
    monkeypatch.setattr(cache, "IN_USE_S", -1)
    LakeCache(tmp_path, 50).evict()
    assert not any(folder.exists() for folder in folders)


def test_what_killed_processes_left_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    folders = [tmp_path / cache.WRITING / name for name in ("left", "written")]
    for folder in folders:
        folder.mkdir(parents=True)
    os.utime(folders[0], (time.time() - 2 * cache.LEFTOVER_S,) * 2)
    LakeCache(tmp_path, 50).evict()
    assert [folder.exists() for folder in folders] == [False, True]


def test_a_version_whose_copying_failed_is_not_in_the_cache(tmp_path: Path) -> None:
    kept = LakeCache(tmp_path, 250)

    def fail(folder: Path) -> None:
        (folder / "t.parquet").write_bytes(b"half")
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011 the error of the caller
        kept.add(f"{OBJECTS}/t/a/s/v", FILES, fail)
    assert kept.find(f"{OBJECTS}/t/a/s/v", FILES) is None
    assert list((tmp_path / OBJECTS / "t" / "a" / "s").iterdir()) == []


def build_pointer(objects: str = "objects/t/a/s/v", file: str = "t.parquet", good: str | None = None) -> Pointer:
    version = StoredVersion(objects, {file: {"bytes": 1, "sha256": "x"}}, {"data_version": "v"})
    return Pointer(version, StoredVersion(good, {}, {}) if good else None)


def test_a_pointer_comes_back() -> None:
    pointer = build_pointer(good="objects/t/a/s/u")
    assert Pointer.from_bytes(pointer.to_bytes(), "", "key") == pointer


@pytest.mark.parametrize(
    "pointer",
    [
        build_pointer(objects="../../elsewhere"),
        build_pointer(objects="/etc"),
        build_pointer(file="../t.parquet"),
        build_pointer(file="/etc/passwd"),
        build_pointer(good="objects/../.."),
    ],
)
def test_a_pointer_cannot_leave_the_cache(pointer: Pointer) -> None:
    with pytest.raises(DistillError, match=r"key is no pointer of a lake.*leaves its folder.*Delete this object"):
        Pointer.from_bytes(pointer.to_bytes(), "", "key")


@pytest.mark.parametrize("content", ["", "[]", "{}", json.dumps({"format": 2})])
def test_what_is_no_pointer_is_refused_with_its_name(content: str) -> None:
    with pytest.raises(DistillError, match=r"^key "):
        Pointer.from_bytes(content, "", "key")


def test_without_an_address_the_lake_is_a_folder(tmp_path: Path) -> None:
    lake = build_lake(LakeSpec(), tmp_path / "lake", tmp_path / "cache", tmp_path / "reports")
    assert type(lake) is Lake
    assert lake.root == tmp_path / "lake"


def test_a_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket.importlib.util, "find_spec", lambda name: None)
    spec = LakeSpec(url=f"s3://bucket/{tmp_path.name}")
    with pytest.raises(DistillError, match=r"needs the package obstore.*pip install.*\[s3\]"):
        build_lake(spec, tmp_path / "lake", tmp_path / "cache", tmp_path / "reports")
