"""A lake in an object store: what a pointer names is whole, one of two writers wins, and faults change neither."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from starlette.exceptions import HTTPException

from distill_dagster.core.errors import DistillError
from distill_dagster.evaluation.golden_looks import append_golden_look, read_golden_looks
from distill_dagster.orchestration.webserver import ReportFiles
from distill_dagster.pipeline.shared_releases import (
    complete_release,
    pull_releases,
    push_current_number,
    push_new_release,
)
from distill_dagster.release.registry import Registry, verify_release
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.lake import ArtifactRecord, Lake
from distill_dagster.tables.object_lake import garbage, pointers
from distill_dagster.tables.object_lake.bucket import Bucket
from distill_dagster.tables.object_lake.cache import OBJECTS
from distill_dagster.tables.object_lake.garbage import remove_garbage
from distill_dagster.tables.object_lake.lake import ObjectLake
from distill_dagster.tables.object_lake.pointers import ConflictError
from distill_dagster.tables.schemas import PROMPT_CONTEXT, build_frame
from tests.support.object_store import (
    BUCKET,
    CREDENTIALS,
    Fault,
    FaultyProxy,
    inject_often,
    inject_once,
    run_object_store,
)

pytestmark = pytest.mark.scale

TASK, ASSET, SLICE = "task", "prompt_context", "shop"
OpenLake = Callable[[str], ObjectLake]


@pytest.fixture(scope="module")
def server() -> Iterator[FaultyProxy]:
    with run_object_store() as proxy:
        yield proxy


@pytest.fixture
def store(server: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": server.url}.items():
        monkeypatch.setenv(name, value)
    yield server
    server.choose = lambda method, path: None


@pytest.fixture
def open_lake(store: FaultyProxy, tmp_path: Path) -> OpenLake:
    """Open the same lake as another machine would: each has a folder of its own."""
    url = f"s3://{BUCKET}/{tmp_path.name}"
    return lambda machine: ObjectLake(url, tmp_path / machine / "cache", tmp_path / machine / "reports", 2**30)


def build_table(*ids: str) -> pl.DataFrame:
    return build_frame([{"id": i, "text": i, "label": "a", "removed": None} for i in ids], PROMPT_CONTEXT, ("id",))


def build_record(frame: pl.DataFrame, partition: str | None = SLICE, **extra: object) -> ArtifactRecord:
    return ArtifactRecord(
        ASSET, partition, compute_data_version(frame), "1", {"golden_set": "v"}, frame.height, extra=extra
    )


def write(lake: Lake, *ids: str, partition: str | None = SLICE, **extra: object) -> ArtifactRecord:
    frame = build_table(*ids)
    record = build_record(frame, partition, **extra)
    lake.write(TASK, frame, record)
    return record


def read_ids(lake: Lake, partition: str | None = SLICE) -> list[str]:
    return lake.read(TASK, ASSET, partition, PROMPT_CONTEXT)[0]["id"].to_list()


def list_objects(lake: ObjectLake) -> list[str]:
    return [found.key for found in lake.bucket.list_objects(f"{OBJECTS}/")]


@pytest.mark.parametrize("partition", [None, SLICE])
def test_a_table_of_one_machine_is_read_on_another(open_lake: OpenLake, tmp_path: Path, partition: str | None) -> None:
    one, other = open_lake("one"), open_lake("other")
    assert other.read_record(TASK, ASSET, partition) is None
    with pytest.raises(DistillError, match=r"not been materialized yet.*distill run task"):
        other.read(TASK, ASSET, partition, PROMPT_CONTEXT)
    record = write(one, "a", "b", partition=partition)
    frame, found = other.read(TASK, ASSET, partition, PROMPT_CONTEXT)
    assert frame.equals(build_table("a", "b"))
    assert found == record == other.read_record(TASK, ASSET, partition)
    local = Lake(tmp_path / "lake", tmp_path / "reports")
    local.write(TASK, frame, record)
    path = other.get_path(TASK, ASSET, partition)
    assert path.read_bytes() == local.get_path(TASK, ASSET, partition).read_bytes()
    assert path.name == local.get_path(TASK, ASSET, partition).name


def test_nothing_is_downloaded_twice(open_lake: OpenLake, store: FaultyProxy) -> None:
    write(open_lake("one"), "a")
    lake = open_lake("other")
    asked: list[str] = []
    store.choose = lambda method, path: asked.append(f"{method} {path}")
    for _ in range(3):
        assert read_ids(lake) == ["a"]
    assert len([line for line in asked if f"/{OBJECTS}/" in line]) == 1
    assert read_ids(open_lake("one")) == ["a"]  # who wrote it has it
    assert len([line for line in asked if f"/{OBJECTS}/" in line]) == 1


def test_one_of_two_writers_wins_and_the_other_sees_who(open_lake: OpenLake) -> None:
    write(open_lake("one"), "old")
    one, other = open_lake("one"), open_lake("other")
    for lake in (one, other):
        lake.note_version(TASK, ASSET, SLICE)
    write(one, "first")
    with pytest.raises(ConflictError) as error:
        write(other, "second")
    assert f"process {os.getpid()} on {socket.gethostname()} at 20" in str(error.value)
    assert read_ids(open_lake("third")) == ["first"]
    other.note_version(TASK, ASSET, SLICE)  # the command runs again
    write(other, "second")
    write(other, "third")  # a stage may write twice
    assert read_ids(one) == ["third"]


def test_two_writers_of_the_same_do_not_disagree(open_lake: OpenLake) -> None:
    one, other = open_lake("one"), open_lake("other")
    for lake in (one, other):
        lake.note_version(TASK, ASSET, SLICE)
    write(one, "same")
    write(other, "same")
    assert read_ids(open_lake("third")) == ["same"]


@pytest.mark.parametrize(
    ("fault", "method", "part"),
    [
        ("lost", "PUT", "pointers/"),
        ("503", "PUT", "pointers/"),
        ("slow", "PUT", "pointers/"),
        ("lost", "PUT", "objects/"),
        ("503", "PUT", "objects/"),
        ("cut", "GET", "pointers/"),
        ("cut", "GET", "objects/"),
        ("lost", "GET", "objects/"),
        ("503", "GET", "pointers/"),
    ],
)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_fault_changes_nothing(
    open_lake: OpenLake, store: FaultyProxy, fault: Fault, method: str, part: str, is_first: bool
) -> None:
    write(open_lake("before"), "old", partition=SLICE if not is_first else "another")
    store.choose, before = inject_once(fault, method, part), store.injected[fault]
    write(open_lake("one"), "a", "b")
    assert read_ids(open_lake("other")) == ["a", "b"]
    assert store.injected[fault] == before + 1
    assert len(list_objects(open_lake("one"))) == 2


def test_a_store_that_is_down_is_named_and_nothing_is_published(
    open_lake: OpenLake, store: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(open_lake("one"), "old")
    lake = open_lake("one")
    lake.note_version(TASK, ASSET, SLICE)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr("distill_dagster.tables.object_lake.bucket.RETRY_TIMEOUT_S", 1)
    lake.bucket = lake.pointers.bucket = Bucket(lake.bucket.url)
    with pytest.raises(DistillError, match=r"s3://lake/.* failed.*AWS_ENDPOINT_URL.*it goes on"):
        write(lake, "new")
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
    assert read_ids(open_lake("other")) == ["old"]


def test_a_server_that_ignores_conditions_is_refused(open_lake: OpenLake, store: FaultyProxy) -> None:
    store.ignores_conditions = True
    try:
        with pytest.raises(DistillError, match=r"s3://lake/.* ignores the conditions .* conditional puts"):
            write(open_lake("one"), "a")
    finally:
        store.ignores_conditions = False
    assert open_lake("other").read_record(TASK, ASSET, SLICE) is None
    write(open_lake("one"), "a")


def test_a_reader_never_sees_a_part(open_lake: OpenLake, store: FaultyProxy) -> None:
    """One writer replaces a table again and again while others read it, and every seventh request fails somehow."""
    write(open_lake("writer"), "0")
    store.choose = inject_often(7)
    done = threading.Event()
    seen: list[int] = []
    errors: list[BaseException] = []

    def read_on(machine: str) -> None:
        try:
            while not done.is_set():
                frame, record = open_lake(machine).read(TASK, ASSET, SLICE, PROMPT_CONTEXT)
                assert compute_data_version(frame) == record.data_version
                assert frame.height == record.rows
                seen.append(frame.height)
        except BaseException as error:
            errors.append(error)

    readers = [threading.Thread(target=read_on, args=(machine,)) for machine in ("one", "two")]
    for reader in readers:
        reader.start()
    for number in range(2, 14):
        write(open_lake("writer"), *map(str, range(number)))
    done.set()
    for reader in readers:
        reader.join()
    assert errors == []
    assert len(set(seen)) > 2
    assert set(store.injected) >= {"503", "cut", "lost"}


def test_the_last_good_version_of_a_blocked_slice_stays(open_lake: OpenLake, tmp_path: Path) -> None:
    lake = open_lake("one")
    good = write(lake, "good")
    for text in ("bad", "worse"):
        blocked = write(lake, text, blocked=["schema"])
    other = open_lake("other")
    assert other.read_record(TASK, ASSET, SLICE) == blocked
    assert other.read_good_record(TASK, ASSET, SLICE) == good
    other.prefetch(TASK, ASSET, [SLICE, "never_made"])
    scanned = other.scan_good(TASK, ASSET, SLICE, PROMPT_CONTEXT, tmp_path)
    assert scanned is not None
    assert (scanned[0].collect()["id"].to_list(), scanned[1]) == (["good"], good)
    assert other.scan_good(TASK, ASSET, "never_made", PROMPT_CONTEXT, tmp_path) is None
    better = write(lake, "better")
    assert other.read_good_record(TASK, ASSET, SLICE) == better


def fill(text: str) -> Callable[[Path], str]:
    def do(folder: Path) -> str:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text(text)
        return text

    return do


@pytest.mark.parametrize("asset", ["student_adapter", "eval_report"])
def test_folders_reach_another_machine(open_lake: OpenLake, asset: str) -> None:
    one, other = open_lake("one"), open_lake("other")
    assert not other.get_folder(TASK, asset, "tiny").exists()
    for text in ("old", "new"):
        made = one.write_folder(TASK, asset, "tiny", lambda v: ArtifactRecord(asset, "tiny", v, "1", {}), fill(text))
        for lake in (one, other):
            folder = lake.get_folder(TASK, asset, "tiny")
            assert (folder / "deep" / "weights").read_text() == text
            assert lake.read_record(TASK, asset, "tiny") == made
    if asset == "eval_report":
        assert folder == other.reports / TASK / "tiny"


def test_the_web_ui_shows_a_report_of_another_machine(open_lake: OpenLake) -> None:
    one, web = open_lake("one"), open_lake("web")
    one.write_folder(
        TASK, "eval_report", "tiny", lambda v: ArtifactRecord("eval_report", "tiny", v, "1", {}), fill("x")
    )
    pages = ReportFiles(web, web.reports)
    scope = {"type": "http", "method": "GET", "headers": []}
    assert asyncio.run(pages.get_response("task/tiny/deep/weights", scope)).status_code == 200
    assert (web.reports / TASK / "tiny" / "deep" / "weights").read_text() == "x"
    for path in ("task/other/report.html", "task/../secret", "../task/tiny"):
        with pytest.raises(HTTPException):
            asyncio.run(pages.get_response(path, scope))


def test_records_of_many_artifacts_take_few_requests(open_lake: OpenLake, store: FaultyProxy) -> None:
    lake, other = open_lake("one"), open_lake("other")
    records = {f"{ASSET}[s{i}]": write(lake, str(i), partition=f"s{i}") for i in range(12)}
    records[ASSET] = write(lake, "x", partition=None)
    assert other.list_records(TASK) == records
    store.counts.clear()
    assert other.list_records(TASK) == records
    assert store.counts["GET"] == 1  # the listing
    records[f"{ASSET}[s3]"] = write(lake, "new", partition="s3")
    store.counts.clear()
    assert other.list_records(TASK) == records
    assert store.counts["GET"] == 2


def test_a_new_machine_reads_many_pointers_at_once(
    open_lake: OpenLake, store: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pointers, "SHARE_FROM", 3)
    lake = open_lake("one")
    records = {f"{ASSET}[s{i}]": write(lake, str(i), partition=f"s{i}") for i in range(4)}
    assert open_lake("other").list_records(TASK) == records
    records[f"{ASSET}[s3]"] = write(lake, "new", partition="s3")
    store.counts.clear()
    assert open_lake("third").list_records(TASK) == records
    assert store.counts["GET"] == 3  # what others read, the listing, and the one that changed since


def test_garbage_is_what_no_pointer_names_and_is_old(
    open_lake: OpenLake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake = open_lake("one")
    write(lake, "good")
    for text in ("bad", "worse"):
        write(lake, text, blocked=["schema"])
    orphan = tmp_path / "orphan"
    orphan.write_text("of a writer that died")
    lake.bucket.upload(f"{OBJECTS}/{TASK}/{ASSET}/{SLICE}/x/shop.parquet", orphan)
    assert len(list_objects(lake)) == 4
    assert remove_garbage(lake.bucket, lake.pointers, timedelta(0)).objects == 0  # all are younger than an hour
    monkeypatch.setattr(garbage, "MIN_AGE", timedelta(seconds=-10))
    found = remove_garbage(lake.bucket, lake.pointers, timedelta(seconds=-10))
    assert (found.objects, found.kept_objects) == (2, 2)
    assert read_ids(open_lake("other")) == ["worse"]
    assert open_lake("other").scan_good(TASK, ASSET, SLICE, PROMPT_CONTEXT, tmp_path) is not None


def test_a_reader_whose_objects_were_removed_follows_the_pointer_again(open_lake: OpenLake) -> None:
    write(open_lake("one"), "old")
    lake = open_lake("other")
    lake.prefetch(TASK, ASSET, [])
    key = "pointers/task/prompt_context/shop.json"
    lake._fetched[key] = lake.pointers.read(key)
    old = list_objects(lake)
    write(open_lake("one"), "new")
    lake.bucket.delete(old)
    assert read_ids(lake) == ["new"]


def test_a_damaged_copy_is_downloaded_again(open_lake: OpenLake) -> None:
    lake = open_lake("one")
    write(lake, "a")
    path = lake.get_path(TASK, ASSET, SLICE)
    path.write_bytes(path.read_bytes()[:50])
    assert read_ids(lake) == ["a"]


def test_releases_reach_another_machine(open_lake: OpenLake, tmp_path: Path) -> None:
    """The manifest comes with the list, the files when they are needed; of two releases of one number one wins."""
    machines = {name: Registry(tmp_path / name / "releases") for name in ("one", "other")}

    def fill(folder: Path, number: int) -> dict[str, object]:
        (folder / "bin").mkdir()
        (folder / "bin" / "weights").write_text("w" * 100)
        return {"student": "tiny"}

    lakes = {name: open_lake(name) for name in machines}
    for name, lake in lakes.items():
        pull_releases(lake, machines[name], TASK)
    made = machines["one"].publish(TASK, fill)
    push_new_release(lakes["one"], machines["one"], TASK, made.number)
    lost = machines["other"].publish(TASK, fill)
    with pytest.raises(ConflictError, match=r"release 1 of task was written by process"):
        push_new_release(lakes["other"], machines["other"], TASK, lost.number)

    other = machines["other"]
    found = other.read(TASK)
    assert found.manifest == made.manifest
    assert not (found.path / "bin" / "weights").exists()
    complete_release(lakes["other"], other, TASK)
    verify_release(found)

    assert "released[1]" in lakes["one"].list_records(TASK)

    second = other.publish(TASK, fill)
    push_new_release(lakes["other"], other, TASK, second.number)
    pull_releases(lakes["one"], machines["one"], TASK)
    assert machines["one"].read_current_number(TASK) == 2
    push_current_number(lakes["one"], machines["one"], TASK, 1)
    pull_releases(lakes["other"], other, TASK)
    assert other.read_current_number(TASK) == 1
    assert remove_garbage(lakes["one"].bucket, lakes["one"].pointers, timedelta(0)).objects == 0


def test_machines_append_to_one_log(open_lake: OpenLake) -> None:
    one, other = open_lake("one"), open_lake("other")
    paths = {}
    for name, lake in (("one", one), ("other", other), ("one", one)):
        paths[name] = lake.reports / TASK / "golden_looks.jsonl"
        append_golden_look(paths[name], {"at": len(read_golden_looks(paths[name])), "machine": name})
        lake.merge_log(TASK, paths[name])
    other.merge_log(TASK, paths["other"])
    for path in paths.values():
        assert sorted(look["machine"] for look in read_golden_looks(path)) == ["one", "one", "other"]
