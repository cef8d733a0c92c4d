"""Shared by all benchmarks: the machine, the result file, and running a task in its own folder."""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("dagster", "polars", "duckdb", "litellm", "torch", "transformers", "peft", "xllamacpp", "ray")


def machine() -> dict[str, Any]:
    """The machine that runs this benchmark, with its GPU if torch is loaded and has one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    device = name_device() if "torch" in sys.modules else "cpu"
    gpu = {} if device == "cpu" else {"gpu": device}
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1),
        "processor": platform.machine(),
        "python": platform.python_version(),
    } | gpu


def name_device() -> str:
    """The name of the GPU that trains, else "cpu"."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def peak_mb() -> float:
    """Return the peak memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage starts with the memory of the parent process
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return round(int(peak.split()[1]) / 1024, 1)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def wanted(arguments: argparse.Namespace, name: str) -> Path | None:
    """Return where figures go: `--json`, else the results folder. A `--quick` run writes nothing there."""
    given: Path | None = arguments.json
    return given or (None if arguments.quick else RESULTS / f"{name}.json")


@contextmanager
def open_home(given: Path | None) -> Iterator[Path]:
    """The folder of everything that tasks generate: the given one, or one that is removed at the end."""
    with tempfile.TemporaryDirectory() as temporary:
        root = given or Path(temporary)
        os.environ["DISTILL_HOME"] = str(root)
        yield root


def read_score(facts: dict[str, Any]) -> dict[str, Any]:
    """A system's accuracy on golden and its interval, from metrics.json."""
    score = facts["score"]
    return {"accuracy": round(score["value"], 4), "interval": [round(score[end], 4) for end in ("low", "high")]}


def name_verdict(values: dict[str, Any]) -> str:
    """Whether distilling paid, from metrics.json."""
    return {True: "yes", False: "no", None: "undecided"}[values["verdict"]["worth_it"]]


def summarize(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation, rounded. One value has no deviation: 0."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return round(statistics.fmean(values), 4), round(deviation, 4)


def write_result(path: Path | None, figures: dict[str, Any], **more: Any) -> None:
    """Write figures with date, versions and machine. Figures in the file under other names are kept."""
    if path is None:
        return
    old = json.loads(path.read_text())["figures"] if path.exists() else {}
    value = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in PACKAGES if find_spec(name) is not None},
        "figures": old | figures,
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".writing")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)
    print(f"wrote {path}")


def run_task(root: Path, tasks: Path, task: str, students: list[str]) -> tuple[Any, dict[str, dict[str, Any]]]:
    """Materialize a task below `root`. Returns the run summary, and metrics.json by student."""
    os.environ["DAGSTER_HOME"] = str(root / "instance")
    from distill_dagster import orchestration
    from distill_dagster.core import progress
    from distill_dagster.core.paths import Home
    from distill_dagster.definitions import build_definitions
    from distill_dagster.pipeline.open_task import open_task
    from distill_dagster.pipeline.run_events import RunEvent

    home = Home(root=root, tasks=tasks)
    started, last = time.perf_counter(), {"at": 0.0}

    def listen(made: progress.Progress) -> None:
        if made.work and time.perf_counter() - last["at"] > 30:
            last["at"] = time.perf_counter()
            print(f"[{time.perf_counter() - started:6.0f} s] {made}", file=sys.stderr, flush=True)

    def notify(event: RunEvent) -> None:
        print(f"[{time.perf_counter() - started:6.0f} s] {event}", file=sys.stderr, flush=True)

    with orchestration.open_instance(home) as instance, progress.listen_to_progress(listen):
        folder = open_task(home.tasks, task, home.accepted)
        orchestration.sync_task(folder, instance)
        summary = orchestration.Runner(home, folder, instance, build_definitions(home)).run(None, students, notify)
    if summary.failed:
        raise SystemExit(f"failed: {summary.failed}")
    metrics = {s: json.loads((home.get_report_folder(task, s) / "metrics.json").read_text()) for s in students}
    return summary, metrics
