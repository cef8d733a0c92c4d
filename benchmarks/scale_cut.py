"""The cut of a large dataset: in one process, and with two Ray workers on the same cores.

One million candidates are cut both ways, then five million. `same_hash` is 1 if both give the same kept and
rejected rows. The memory is that of all processes together: of each its own part (PSS), so Ray's shared memory counts
once.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import polars as pl
from filters import make_corpus

from distill_dagster.config import Task
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.core.ray_workers import RayWorkers
from distill_dagster.core.workers import IN_PROCESS
from distill_dagster.curation.dataset.curate import curate_dataset
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import extract_user_texts
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.lake import GROUP_ROWS
from distill_dagster.tables.parquet import write_parquet
from distill_dagster.tables.schemas import SCORED, conform_to_schema

ROWS, MANY_ROWS, QUICK_ROWS = 1_000_000, 5_000_000, 120_000
BASE_ROWS, GOLDEN = 100_000, 500
MEMORY_GB = 4.0
STORE_MB, TEXT_MB = 200, 512
CORES = 2
VOWELS = "aeiou"
TASK = {
    "kind": "qa",
    "description": "A benchmark.",
    "teacher": "replay/none",
    "students": {"small": {"model": "smollm2-135m-instruct", "architecture": "causal_lm"}},
    "curation": {"filters": {"min_agreement": 0.6, "truncated": True}, "dedup": {"near": {"compare": "prompt"}}},
}


def write_slices(folder: Path, rows: int) -> list[Path]:
    """Write scored candidates, a file for each slice. Each slice has words of its own: the vowels are exchanged."""
    folder.mkdir()
    base = make_corpus(min(BASE_ROWS, rows), 0).select(list(SCORED))
    files = []
    for number, start in enumerate(range(0, rows, base.height)):
        letters = {one: VOWELS[(place + number) % 5] * (1 + number // 5) for place, one in enumerate(VOWELS)}
        said = pl.element().struct.with_fields(pl.field("content").str.replace_many(letters))
        part = base.head(rows - start).with_columns(
            pl.col("messages").list.eval(said),
            pl.col("answer").str.replace_many(letters),
            pl.lit(f"s{number}").alias("slice"),
            pl.format("{}{}", pl.col("prompt_id"), pl.lit(f"{number:03d}")).alias("prompt_id"),
        )
        files.append(folder / f"s{number}.parquet")
        write_parquet(conform_to_schema(part, SCORED, ("prompt_id",)), files[-1], {}, GROUP_ROWS)
    return files


def cut(folder: Path, engine: str) -> dict[str, Any]:
    """Cut the slices of a folder. Returns seconds, rows and data versions."""
    task, files = Task.model_validate(TASK), sorted(folder.iterdir())
    asked = pl.read_parquet(files[-1], columns=["messages"], n_rows=GOLDEN * 10)["messages"].gather_every(10)
    items = pl.DataFrame({"text": extract_user_texts(asked)}).with_row_index("id").cast({"id": pl.String})
    workers = RayWorkers("local", CORES, STORE_MB) if engine == "ray" else IN_PROCESS
    if isinstance(workers, RayWorkers):
        workers.connect()
    limits = ResourceLimits(memory_mb=TEXT_MB, spill=folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent) as into:
        started = time.perf_counter()
        about = TaskView.from_task(task)
        made = curate_dataset(
            files, set(), [], task.curation, about, items=items, limits=limits, folder=Path(into), workers=workers
        )
        seconds = time.perf_counter() - started
        versions = [compute_data_version(made.kept), compute_data_version(made.left_out)]
    return {"s": seconds, "rows": made.candidates, "reasons": made.count_reasons(), "versions": versions}


def run(folder: Path, engine: str) -> dict[str, Any]:
    """Run one cut in a process of its own, and watch the memory of all processes below it."""
    process = subprocess.Popen([sys.executable, __file__, str(folder), engine], stdout=subprocess.PIPE, text=True)
    peak, ended = [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.5):
            peak[0] = max(peak[0], sum_memory_gb(process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    out, _ = process.communicate()
    ended.set()
    thread.join()
    if process.returncode:
        raise SystemExit(f"The cut with {engine} failed.")
    found: dict[str, Any] = json.loads(out.splitlines()[-1]) | {"gb": round(peak[0], 2)}
    print(engine, {name: value for name, value in found.items() if name != "versions"}, file=sys.stderr)
    return found


def sum_memory_gb(pid: int) -> float:
    """The memory in use by a process and all below it, in 10^9 bytes."""
    import psutil

    total = 0
    for one in [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]:
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return total * 1024 / 1e9


def measure(quick: bool, scratch: Path) -> dict[str, float]:
    """Cut both ways, and compare what they give."""
    figures: dict[str, float] = {"same_hash": 1}
    for name, rows in {"quick": QUICK_ROWS}.items() if quick else {"1m": ROWS, "5m": MANY_ROWS}.items():
        folder = scratch / f"cut-{name}"
        write_slices(folder, rows)
        alone, ray = run(folder, "alone"), run(folder, "ray")
        if alone["rows"] != rows or not alone["reasons"]["near_duplicate"]:
            raise SystemExit(f"The cut found no near-duplicates in {alone['rows']} rows.")
        figures["same_hash"] *= int(alone["versions"] == ray["versions"])
        figures |= {f"cut_{name}_s": round(alone["s"], 1), f"cut_{name}_ray_s": round(ray["s"], 1)}
        figures |= {f"cut_{name}_gb": alone["gb"], f"cut_{name}_ray_gb": ray["gb"]}
        figures[f"cut_{name}_ray_ratio"] = round(ray["s"] / alone["s"], 2)
    if not quick:
        figures["cut_5m_within_4_gb"] = int(max(figures["cut_5m_gb"], figures["cut_5m_ray_gb"]) <= MEMORY_GB)
    return figures


if __name__ == "__main__":
    print(json.dumps(cut(Path(sys.argv[1]), sys.argv[2])))
