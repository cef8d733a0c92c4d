"""Measure what an edit costs: one of 77 slices changes, nothing changes, and a thousand slices at once.

Usage: python benchmarks/incremental.py --data FOLDER [--quick] [--part 77|many|all] [--many 1000] [--json FILE]

FOLDER holds Banking77's train.csv and test.csv. Every intent is a slice. The teacher is a local HTTP server that
answers with the gold label and counts requests. Runs go up to filtered_dataset, without training. An edit is compared
with the full run in the same process.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from banking77 import read
from common import wanted, write_result

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))

from tests.support.provider import FakeProvider, ReceivedRequest  # noqa: E402

TASK = "banking"
QUICK_SLICES, QUICK_MANY = 6, 12
SEEDS, MANY_SEEDS = 20, 20


def write_rows(path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"id": f"{path.stem}-{i}", "text": t, "label": n}) for i, (t, n) in enumerate(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def build(folder: Path, data: Path, slices: int, url: str) -> tuple[dict[str, str], Callable[[str], str]]:
    """Write a task with one slice per intent. Returns the gold label of every text, and makes texts in no slice yet."""
    train, test = read(data / "train.csv"), read(data / "test.csv")
    intents = sorted(train)[:slices]
    names = {intent: intent.replace("_", " ").replace("?", "") for intent in intents}
    gold = {text: names[i] for i in intents for text in (*train[i], *test[i])}
    parts = {i: list(dict.fromkeys(train[i])) for i in intents}
    (folder / "slices").mkdir(parents=True)
    write_rows(folder / "examples.jsonl", [(parts[i][0], names[i]) for i in intents])
    write_rows(folder / "dev.jsonl", [(parts[i][1], names[i]) for i in intents])
    write_rows(folder / "golden.jsonl", [(sorted(set(test[i]))[0], names[i]) for i in intents])
    for i in intents:
        value = {"description": f"Messages about {names[i]}.", "seeds": parts[i][2 : 2 + SEEDS]}
        key = i.casefold().replace("?", "")
        (folder / "slices" / f"{key}.yaml").write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    write_task(folder, list(names.values()), url)
    return gold, lambda intent: parts[intent][2 + SEEDS]


def write_task(folder: Path, labels: list[str], url: str) -> None:
    settings = {
        "kind": "classification",
        "description": "Sort a bank customer's message.",
        "labels": [{"name": name, "description": name} for name in labels],
        "teacher": {"model": "openai/gold", "api_base": url, "few_shot": {"per_label": 0, "draws": 1}},
        "students": {
            "minilm": {
                "model": "all-minilm-l6-v2",
                "architecture": "encoder",
                "epochs": 1,
                "batch_size": 32,
                "max_tokens": 64,
            }
        },
        "evaluation": {"bootstrap_samples": 200, "latency_items": 2},
    }
    (folder / "task.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")


def run(root: Path, backfill: bool = False) -> tuple[Any, float, float]:
    """Run up to filtered_dataset (or scored_completions). Returns the summary, seconds, and seconds inside steps."""
    import dagster as dg

    from distill_dagster import orchestration
    from distill_dagster.core.paths import Home
    from distill_dagster.definitions import build_definitions as definitions
    from distill_dagster.pipeline.open_task import open_task
    from distill_dagster.pipeline.run_events import RunEvent

    home = Home(root=root, tasks=root / "tasks")
    folder = open_task(home.tasks, TASK, home.accepted)
    started, shown = time.perf_counter(), 0.0

    def notify(event: RunEvent) -> None:
        nonlocal shown
        if time.perf_counter() - shown > 20:
            shown = time.perf_counter()
            print(f"  [{shown - started:4.0f} s] {event}", flush=True)

    with orchestration.open_instance(home) as instance:
        orchestration.sync_task(folder, instance)
        runner = orchestration.Runner(home, folder, instance, definitions(home))
        summary = runner.backfill(folder.list_slice_keys(), notify, False) if backfill else runner.run(None, [], notify)
        wall = time.perf_counter() - started
        if summary.failed or summary.blocked:
            raise SystemExit(f"failed: {summary.failed} {summary.blocked}")
        inside = 0.0
        for run_id in summary.runs:
            records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.STEP_SUCCESS).records
            events = [record.event_log_entry.dagster_event for record in records]
            inside += sum(e.step_success_data.duration_ms / 1000 for e in events if e is not None)
    return summary, wall, inside


def command(root: Path, *arguments: str) -> tuple[float, dict[str, Any]]:
    """Run a `distill` command in its own process. Returns seconds from start to end, and its JSON."""
    environment = os.environ | {"DISTILL_HOME": str(root), "DISTILL_TASKS": str(root / "tasks")}
    environment |= {"PYTHONPATH": str(PROJECT)}
    environment.pop("DAGSTER_HOME", None)
    started = time.perf_counter()
    call = [sys.executable, "-m", "distill_dagster", *arguments, TASK, "--json"]
    done = subprocess.run(call, env=environment, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"distill {arguments[0]} failed: {done.stdout[-2000:]} {done.stderr[-2000:]}")
    return time.perf_counter() - started, json.loads(done.stdout.strip().splitlines()[-1])


def import_seconds() -> float:
    """Measure seconds to load the code location in a new interpreter, the best of three."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        call = [sys.executable, "-c", "import distill_dagster.definitions"]
        subprocess.run(call, check=True, cwd=PROJECT, env=os.environ | {"PYTHONPATH": str(PROJECT)})
        times.append(time.perf_counter() - started)
    return min(times)


def one_of_many(root: Path, data: Path, slices: int) -> dict[str, Any]:
    """Measure the full run, one edited seed, and no edit."""
    gold: dict[str, str] = {}

    def answer(seen: ReceivedRequest) -> str:
        return gold[seen.text]

    figures: dict[str, Any] = {"slices": slices}
    with FakeProvider([], answer=answer) as provider:
        folder = root / "tasks" / TASK
        texts, fresh = build(folder, data, slices, provider.url)
        gold |= texts
        full, full_s, inside = run(root)
        figures |= {"full_wall_s": round(full_s, 1), "full_calls": len(provider.requests), "full_runs": len(full.runs)}
        figures["full_dagster_share"] = round(1 - inside / full_s, 3)
        started = time.perf_counter()
        command(root, "refresh", "--force")
        figures["training_and_report_s"] = round(time.perf_counter() - started, 1)

        path = sorted((folder / "slices").glob("*.yaml"))[slices // 2]
        value = yaml.safe_load(path.read_text())
        value["seeds"][0] = fresh(next(i for i in sorted(read(data / "train.csv")) if _key(i) == path.stem))
        path.write_text(yaml.safe_dump(value, allow_unicode=True))
        asked = len(provider.requests)
        gc.collect()  # an edit usually has its own process, without the garbage of the full run
        edit, edit_s, inside = run(root)
        figures["edit_partitions"] = max(len(edit.partitions[a]) for a in ("seed_prompts", "teacher_completions"))
        figures["edit_made"] = {asset: len(keys) for asset, keys in edit.partitions.items()}
        figures |= {"edit_calls": len(provider.requests) - asked, "edit_wall_s": round(edit_s, 2)}
        figures |= {"edit_wall_ratio": round(edit_s / full_s, 4), "dagster_share": round(1 - inside / edit_s, 3)}
        print(f"an edit took {edit_s / full_s:.1%} of the full run ({edit_s:.1f} of {full_s:.1f} s)")

        command(root, "refresh", "--force")
        asked = len(provider.requests)
        seconds, found = command(root, "refresh")
        figures |= {"nochange_s": round(seconds, 2), "nochange_runs": len(found["runs"])}
        figures["nochange_calls"] = len(provider.requests) - asked
        figures["status_s"] = round(command(root, "status")[0], 2)
    figures["import_s"] = round(import_seconds(), 2)
    return figures


def _key(intent: str) -> str:
    return intent.casefold().replace("?", "")


def many(root: Path, slices: int) -> dict[str, Any]:
    """Measure a backfill of this many slices, then one edit."""
    labels = ["refund", "delivery", "login"]
    with FakeProvider([], answer=lambda seen: labels[len(seen.text) % 3]) as provider:
        folder = root / "tasks" / TASK
        (folder / "slices").mkdir(parents=True)
        for file in ("examples", "dev", "golden"):
            write_rows(folder / f"{file}.jsonl", [(f"{file} about {label}", label) for label in labels])
        for n in range(slices):
            value = {"description": f"Slice {n}.", "seeds": [f"message {i} of slice {n}" for i in range(MANY_SEEDS)]}
            (folder / "slices" / f"s{n:04}.yaml").write_text(yaml.safe_dump(value))
        write_task(folder, labels, provider.url)
        _, wall, inside = run(root, backfill=True)
        name = f"slices{slices}"
        figures: dict[str, Any] = {f"{name}_s": round(wall, 1), f"{name}_s_per_slice": round(wall / slices, 3)}
        figures[f"{name}_calls"] = len(provider.requests)
        figures[f"{name}_peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        figures[f"{name}_dagster_share"] = round(1 - inside / wall, 3)
        files = [path for path in (root / "instance").rglob("*") if path.is_file()]
        figures[f"{name}_instance_mb"] = round(sum(path.stat().st_size for path in files) / 2**20, 1)
        path = folder / "slices" / f"s{slices // 2:04}.yaml"
        path.write_text(path.read_text() + "- one message more\n")
        asked = len(provider.requests)
        edit, edit_s, _ = run(root, backfill=True)
        figures |= {f"{name}_edit_s": round(edit_s, 1), f"{name}_edit_calls": len(provider.requests) - asked}
        figures[f"{name}_edit_partitions"] = len(edit.partitions["seed_prompts"])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--part", choices=("77", "many", "all"), default="all")
    parser.add_argument("--many", type=int, default=1000, help="number of slices in the second part")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    parts: list[tuple[str, Callable[[Path], dict[str, Any]]]] = [
        ("77", lambda root: one_of_many(root, arguments.data, QUICK_SLICES if arguments.quick else 77)),
        ("many", lambda root: many(root, QUICK_MANY if arguments.quick else arguments.many)),
    ]
    for name, part in parts:
        if arguments.part in (name, "all"):
            with tempfile.TemporaryDirectory() as temporary:
                os.environ.pop("DAGSTER_HOME", None)
                figures |= part(Path(temporary))
    for name, value in figures.items():
        print(f"{name:32} {value}")
    if arguments.quick:
        print("quick: these sizes are too small for real figures")
    write_result(wanted(arguments, "incremental"), figures)


if __name__ == "__main__":
    main()
