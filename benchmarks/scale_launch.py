"""Measure slices that Dagster launches against slices that one process makes, and what a thousand slices cost later.

A part of scale.py. The teacher is a local HTTP server, so that what is measured is the work around it. The same number
of slices is made in one process, by a run each, and by runs over ranges; then status and an edit with all slices.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from incremental import PROJECT, TASK, write_rows, write_task

from tests.support.provider import FakeProvider

LABELS = ["refund", "delivery", "login"]
SEEDS = 5
"""Prompts of a slice."""
RANGE = 50
"""Slices of a run over a range."""
START_S = 300
REPEATS = 3
"""How often status and an edit are measured. The least time counts: other work of the machine only adds to it."""


def write_slices(folder: Path, first: int, last: int) -> None:
    """Write the files of slices, of which the texts differ."""
    for n in range(first, last):
        value = {"description": f"Slice {n}.", "seeds": [f"message {i} of slice {n}" for i in range(SEEDS)]}
        (folder / "slices" / f"s{n:05}.yaml").write_text(yaml.safe_dump(value))


def write_project(folder: Path, url: str) -> None:
    """Write a task whose teacher is at `url`, without slices."""
    (folder / "slices").mkdir(parents=True)
    for file in ("examples", "dev", "golden"):
        write_rows(folder / f"{file}.jsonl", [(f"{file} about {label}", label) for label in LABELS])
    write_task(folder, LABELS, url)
    task = yaml.safe_load((folder / "task.yaml").read_text())
    (folder / "task.yaml").write_text(yaml.safe_dump(task | {"gate": {"teacher_over_base": None}}, sort_keys=False))


def build_environment(root: Path, deployment: dict[str, Any] | None) -> dict[str, str]:
    """The environment of a command, with a deployment.yaml of these settings."""
    environment = os.environ | {"DISTILL_HOME": str(root), "DISTILL_TASKS": str(root / "tasks")}
    environment |= {"PYTHONPATH": str(PROJECT), "OPENAI_API_KEY": "none"}
    environment.pop("DAGSTER_HOME", None)
    path = root / "deployment.yaml"
    path.write_text(yaml.safe_dump(deployment or {}))
    return environment | {"DISTILL_DEPLOYMENT": str(path)}


def run_command(root: Path, deployment: dict[str, Any] | None, *arguments: str) -> tuple[float, dict[str, Any]]:
    """Run a `distill` command. Returns seconds from start to end, and its JSON."""
    call = [sys.executable, "-m", "distill_dagster", *arguments, TASK, "--json"]
    started = time.perf_counter()
    environment = build_environment(root, deployment)
    done = subprocess.run(call, env=environment, cwd=root, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"distill {' '.join(arguments)} failed: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    return seconds, json.loads(done.stdout.strip().splitlines()[-1])


@contextmanager
def serve_ui(root: Path, deployment: dict[str, Any] | None = None) -> Iterator[None]:
    """`distill ui` with a deployment.yaml of these settings: code location, daemon and webserver."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = root / "ui.txt"
    call = [sys.executable, "-m", "distill_dagster", "ui", "--port", str(port)]
    with log.open("w") as out:
        ui = subprocess.Popen(
            call, env=build_environment(root, deployment), cwd=root, stdout=out, stderr=out, start_new_session=True
        )
    try:
        deadline = time.monotonic() + START_S
        while "The UI is on" not in log.read_text():
            if ui.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"distill ui did not start: {log.read_text()[-2000:]}")
            time.sleep(0.2)
        yield
    finally:
        ui.terminate()
        ui.wait(START_S)


def measure_instance_mb(root: Path) -> float:
    """The size of Dagster's instance in MiB."""
    return sum(path.stat().st_size for path in (root / "instance").rglob("*") if path.is_file()) / 2**20


def measure(quick: bool, scratch: Path) -> dict[str, float]:
    """Measure each way to make slices on the same machine, then status and edits with all of them."""
    from scale_launch_ray import measure_ray  # which imports this module

    for name in ("queue", "ray"):
        (scratch / name).mkdir()
    with FakeProvider([], answer=lambda seen: LABELS[len(seen.text) % len(LABELS)]) as provider:
        return _measure_queue(quick, scratch / "queue", provider) | measure_ray(quick, scratch / "ray", provider)


def _measure_queue(quick: bool, scratch: Path, provider: FakeProvider) -> dict[str, float]:
    alone, total, size = (4, 16, 6) if quick else (30, 1000, RANGE)
    figures: dict[str, float] = {"launch_slices": total, "launch_slices_per_run": size}
    folder = scratch / "tasks" / TASK
    write_project(folder, provider.url)
    write_slices(folder, 0, 1)
    run_command(scratch, None, "backfill")  # what all slices share, and the model of the student

    def make(first: int, last: int, deployment: dict[str, Any] | None) -> float:
        write_slices(folder, first, last)
        before = len(provider.requests)
        _, found = run_command(scratch, deployment, "backfill")
        asked, made = len(provider.requests) - before, len(found["partitions"]["scored_completions"])
        if (asked, made) != (SEEDS * (last - first), last - first):
            raise SystemExit(f"{last - first} slices: {made} made, {asked} requests")
        return float(found["wall_s"]) / made

    figures["s_per_slice_in_process"] = round(make(1, 1 + alone, None), 3)
    with serve_ui(scratch):
        before = measure_instance_mb(scratch)
        each = make(1 + alone, 1 + 2 * alone, {"runs": {"launch": True}})
        figures["s_per_slice_launched_alone"] = round(each, 3)
        figures["instance_mb_per_slice_launched_alone"] = round((measure_instance_mb(scratch) - before) / alone, 3)
        before = measure_instance_mb(scratch)
        ranges = {"runs": {"launch": True, "slices_per_run": size}}
        figures["s_per_slice_launched"] = round(make(1 + 2 * alone, total, ranges), 3)
        mb = (measure_instance_mb(scratch) - before) / (total - 1 - 2 * alone)
        figures["instance_mb_per_slice_launched"] = round(mb, 3)
        _edit(folder, total // 3)
        seconds, found = run_command(scratch, {"runs": {"launch": True}}, "backfill")
        figures["edit_launched_s"] = round(seconds, 2)
        _require_one(found)
    figures["instance_mb"] = round(measure_instance_mb(scratch), 1)
    figures["s_per_slice_overhead"] = round(figures["s_per_slice_launched"] - figures["s_per_slice_in_process"], 3)
    name = "status_1000_s" if total == 1000 else "status_s"
    figures[name] = round(min(run_command(scratch, None, "status")[0] for _ in range(REPEATS)), 2)
    figures["edit_1000_s" if total == 1000 else "edit_s"] = round(min(measure_edits(scratch, total // 2)), 2)
    return figures


def measure_edits(scratch: Path, first: int) -> list[float]:
    """Seconds of a backfill after an edit of one slice, for slices from this number on."""
    seconds = []
    for number in range(first, first + REPEATS):
        _edit(scratch / "tasks" / TASK, number)
        wall, found = run_command(scratch, None, "backfill")
        _require_one(found)
        seconds.append(wall)
    return seconds


def _edit(folder: Path, number: int) -> None:
    path = folder / "slices" / f"s{number:05}.yaml"
    path.write_text(path.read_text() + "- one message more\n")


def _require_one(found: dict[str, Any]) -> None:
    if len(found["partitions"]["scored_completions"]) != 1:
        raise SystemExit(f"an edit of one slice made {found['partitions']}")
