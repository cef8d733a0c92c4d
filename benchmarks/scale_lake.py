"""Measure a lake in an object store against one in a folder, and read it while it is written and requests fail.

A part of scale.py. The bundled task runs twice with one student, into a folder and into a server on this machine that
speaks S3; then one prompt is removed, and both refresh. Then a table and a folder are replaced again and again while
two other machines read them, and one request in seven is refused, late, cut in the middle, or done without an answer.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from unittest import mock

import polars as pl

from distill_dagster.config.deployment import LakeSpec
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.pipeline.open_lake import build_lake
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.object_lake.lake import ObjectLake
from distill_dagster.tables.object_lake.pointers import Pointer, StoredVersion, request_all
from distill_dagster.tables.schemas import PROMPT_CONTEXT, build_frame
from tests.support.object_store import BUCKET, CREDENTIALS, FaultyProxy, inject_often, run_object_store

TASK, STUDENT = "support_triage", "minilm"
RUNS, QUICK_RUNS = 200, 20
SLICES, QUICK_SLICES = 1_000, 50
FAULTY_EVERY = 7
READERS = ("one", "two")


def run_distill(root: Path, environment: dict[str, str], *arguments: str) -> tuple[float, dict[str, object]]:
    """Run a command on the project in `root`. Returns its wall time in seconds and what it printed."""
    environment = os.environ | environment | {"DISTILL_HOME": str(root), "DISTILL_TASKS": str(root / "tasks")}
    environment.pop("DAGSTER_HOME", None)
    command = [sys.executable, "-m", "distill_dagster", *arguments, "--json"]
    started = time.perf_counter()
    ended = subprocess.run(command, env=environment, cwd=PROJECT_FOLDER, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed: {ended.stderr[-2000:]}")
    return time.perf_counter() - started, json.loads(ended.stdout)


def remove_prompt(root: Path) -> None:
    """Remove the first prompt of the first slice."""
    file = min((root / "tasks" / TASK / "slices").glob("*.yaml"))
    lines = file.read_text(encoding="utf-8").splitlines()
    del lines[lines.index("seeds:") + 1]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def measure_runs(scratch: Path, server: FaultyProxy) -> dict[str, float]:
    """Full run, edit and status of the bundled task in both lakes."""
    figures: dict[str, float] = {}
    versions = set()
    for name in ("local", "s3"):
        root = scratch / name
        shutil.copytree(PROJECT_FOLDER / "data" / "tasks" / TASK, root / "tasks" / TASK)
        url = {"DISTILL_LAKE_URL": f"s3://{BUCKET}/runs"} if name == "s3" else {"DISTILL_LAKE_URL": ""}
        server.counts.clear()
        figures[f"lake_{name}_run_s"], _ = run_distill(root, url, "run", TASK, "--student", STUDENT)
        if name == "s3":
            figures["lake_s3_run_requests"] = server.counts.total()
        remove_prompt(root)
        server.counts.clear()
        figures[f"lake_{name}_edit_s"], _ = run_distill(root, url, "refresh", TASK)
        if name == "s3":
            figures["lake_s3_edit_requests"] = server.counts.total()
        server.counts.clear()
        figures[f"lake_{name}_status_s"], _ = run_distill(root, url, "status", TASK)
        if name == "s3":
            figures["lake_s3_status_requests"] = server.counts.total()
        spec = LakeSpec(url=url["DISTILL_LAKE_URL"] or None)
        lake = build_lake(spec, root / "lake", root / "lake_cache", root / "reports")
        record = lake.read_record(TASK, "filtered_dataset")
        assert record is not None
        versions.add(record.data_version)
    figures["lake_same_hash"] = len(versions) == 1
    for step in ("run", "edit"):
        figures[f"lake_{step}_ratio"] = figures[f"lake_s3_{step}_s"] / figures[f"lake_local_{step}_s"]
    return figures


def measure_records(scratch: Path, server: FaultyProxy, slices: int) -> dict[str, float]:
    """Seconds and requests for the records of so many slices, as status reads them: first, again, on a new machine."""
    stages = ("seed_prompts", "teacher_completions", "scored_completions", "judged")

    def put(lake: ObjectLake, stage: str, number: int) -> None:
        key = f"s{number:05}"
        record = ArtifactRecord(stage, key, f"{number:064}", "1", {f"slice_files[{key}]": "0" * 64}, 5)
        version = StoredVersion(f"objects/task/{stage}/{key}/v", {}, asdict(record))
        lake.bucket.put(f"pointers/task/{stage}/{key}.json", Pointer(version).to_bytes())

    lake = ObjectLake(f"s3://{BUCKET}/many", scratch / "many", scratch / "reports", 2**28)
    request_all(lambda one: put(lake, *one), [(stage, n) for stage in stages for n in range(slices)])
    figures = {"lake_slices_listed": float(slices)}
    for name in ("first", "again", "elsewhere"):
        if name == "elsewhere":
            lake = ObjectLake(f"s3://{BUCKET}/many", scratch / "elsewhere", scratch / "reports", 2**28)
        server.counts.clear()
        started = time.perf_counter()
        assert len(lake.list_records("task")) == slices * len(stages)
        figures[f"lake_records_{name}_s"] = time.perf_counter() - started
        figures[f"lake_records_{name}_requests"] = server.counts.total()
    return figures


def build_table(rows: int) -> pl.DataFrame:
    """A table whose content follows from its number of rows."""
    return build_frame(
        [{"id": str(i), "text": f"{i} of {rows}", "label": "a", "removed": None} for i in range(rows)],
        PROMPT_CONTEXT,
        ("id",),
    )


def count_torn_reads(scratch: Path, server: FaultyProxy, runs: int) -> dict[str, float]:
    """Replace a table and a folder `runs` times under faults, while other machines read both. Counts what is torn."""
    found: Counter[str] = Counter()
    done = threading.Event()
    lock = threading.Lock()

    def open_lake(machine: str) -> ObjectLake:
        return ObjectLake(f"s3://{BUCKET}/torn", scratch / machine / "cache", scratch / machine / "reports", 2**28)

    def write(rows: int) -> None:
        lake = open_lake("writer")
        frame = build_table(rows)
        lake.write("task", frame, ArtifactRecord("t", "s", compute_data_version(frame), "1", {}, frame.height))

        def fill(folder: Path) -> str:
            for part in range(3):
                (folder / f"weights-{part}").write_text(f"{rows} " * 1000)
            return str(rows)

        lake.write_folder("task", "f", "s", lambda version: ArtifactRecord("f", "s", version, "1", {}), fill)

    def read(machine: str) -> None:
        while not done.is_set():
            lake = open_lake(machine)
            frame, record = lake.read("task", "t", "s", PROMPT_CONTEXT)
            torn = compute_data_version(frame) != record.data_version or frame.height != record.rows
            folder = lake.get_folder("task", "f", "s")
            texts = {(folder / f"weights-{part}").read_text() for part in range(3)}
            torn = torn or len(texts) > 1 or len(set(texts.pop().split())) > 1
            with lock:
                found["reads"] += 1
                found["torn"] += torn

    write(1)
    server.injected.clear()
    server.choose = inject_often(FAULTY_EVERY)
    failed: list[BaseException] = []

    def guard(machine: str) -> None:
        try:
            read(machine)
        except BaseException as error:  # a reader that ends early would count nothing
            failed.append(error)

    readers = [threading.Thread(target=guard, args=(machine,)) for machine in READERS]
    for reader in readers:
        reader.start()
    for run in range(runs):
        write(2 + run)
    done.set()
    for reader in readers:
        reader.join()
    server.choose = lambda method, path: None
    if failed:
        raise SystemExit(f"a reader failed: {failed[0]!r}")
    faults = {f"lake_faults_{name}": float(count) for name, count in sorted(server.injected.items())}
    return {"torn_reads": found["torn"], "lake_reads": found["reads"], "lake_writes": 2 * runs} | faults


@contextmanager
def serve_objects() -> Iterator[FaultyProxy]:
    """An empty bucket on this machine, to which this process and its children send their requests."""
    with run_object_store() as server, mock.patch.dict(os.environ, {**CREDENTIALS, "AWS_ENDPOINT_URL": server.url}):
        yield server


def measure(quick: bool, scratch: Path) -> dict[str, float]:
    """All figures of this part; with `quick` a tenth of the runs under faults, and 50 slices."""
    with serve_objects() as server:
        figures = count_torn_reads(scratch, server, QUICK_RUNS if quick else RUNS)
        figures |= measure_records(scratch, server, QUICK_SLICES if quick else SLICES)
        figures |= measure_runs(scratch, server)
    return {name: round(value, 3) for name, value in figures.items()}
