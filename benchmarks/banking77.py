"""Banking77 (Casanueva et al. 2020) through the whole pipeline: teacher, base, seed_only, distilled, centroid.

Usage: python benchmarks/banking77.py --data FOLDER [--intents 12] [--quick] [--json FILE]

FOLDER holds train.csv and test.csv with the columns text and category. Slices are hash buckets, not intents. Examples
and dev are drawn from train, the other train texts are the unlabelled seeds, and a stratified sample of test is golden.
The 12 intents are the first with each first word, in the order of categories.json. With 77 intents labels share first
tokens, and the teacher is asked again after the shared part.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import yaml
from common import run_task, wanted, write_result

from distill_dagster.core.hashing import hash_content
from distill_dagster.core.text import normalize_text

SLICES = 10
SIZES = {  # per intent: examples, dev, seeds, golden
    12: (9, 8, 40, 20),
    77: (3, 1, 3, 2),
}
QUICK = {12: (3, 1, 2, 2), 77: (2, 1, 1, 1)}


def read(path: Path) -> dict[str, list[str]]:
    rows: dict[str, list[str]] = defaultdict(list)
    with path.open(newline="", encoding="utf-8") as handle:
        for row in csv.DictReader(handle):
            rows[row["category"]].append(" ".join(row["text"].split()))
    return rows


def intents(categories: list[str], count: int) -> list[str]:
    if count >= len(categories):
        return categories
    first: dict[str, str] = {}
    for name in categories:
        first.setdefault(name.split("_")[0].casefold(), name)
    return list(first.values())[:count]


def build(
    folder: Path, data: Path, count: int, sizes: tuple[int, int, int, int], draws: int, task: str
) -> dict[str, int]:
    """Write the task folder and return the number of rows in each file."""
    train, test = read(data / "train.csv"), read(data / "test.csv")
    chosen = intents(json.loads((data / "categories.json").read_text()), count)
    names = {c: c.replace("_", " ").replace("?", "") for c in chosen}
    order, (n_examples, n_dev, n_seeds, n_golden) = random.Random(77), sizes
    held_out = {normalize_text(t) for c in chosen for t in test[c]}
    files: dict[str, list[dict[str, str]]] = {"examples": [], "dev": [], "golden": []}
    slices: dict[str, list[str]] = defaultdict(list)
    for category in chosen:
        texts = sorted({t for t in train[category] if normalize_text(t) not in held_out})
        order.shuffle(texts)
        golden = sorted(set(test[category]))
        order.shuffle(golden)
        parts = {
            "examples": texts[:n_examples],
            "dev": texts[n_examples : n_examples + n_dev],
            "golden": golden[:n_golden],
        }
        for file, part in parts.items():
            for text in part:
                number = len(files[file]) + 1
                files[file].append({"id": f"{file}-{number:04}", "text": text, "label": names[category]})
        for text in texts[n_examples + n_dev : n_examples + n_dev + n_seeds]:
            slices[f"bucket-{int(hash_content(text)[:8], 16) % SLICES}"].append(text)
    for file, rows in files.items():
        order.shuffle(rows)
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{file}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "slices").mkdir()
    for key, texts in slices.items():
        value = {"description": "Messages of a bank's customers.", "seeds": sorted(texts)}
        (folder / "slices" / f"{key}.yaml").write_text(yaml.safe_dump(value, allow_unicode=True), encoding="utf-8")
    settings = yaml.safe_load((Path(__file__).parent.parent / "data/tasks/support_triage/task.yaml").read_text())
    settings |= {
        "description": f"Sort a bank customer's message into one of {count} intents.",
        "instructions": "Sort the message of a bank's customer into one of the categories.",
        "item": "Message",
        "labels": [{"name": name, "description": name} for name in names.values()],
    }
    # Chosen on train with 12 intents: on dev, shared examples reach 0.81 to 0.85 (one to three of each
    # label), the six nearest 0.94. A prompt with an example of each of 77 would be ten times as long.
    settings["teacher"]["few_shot"] = {"nearest": 10 if count > 12 else 6, "draws": draws}
    settings["teacher"]["calibration_items"] = 1 if count > 12 else 5
    settings["teacher"]["resolve_labels"] = count > 12
    if count > 12:  # for time: a prediction scores 77 labels
        settings["students"]["smollm2"] |= {"epochs": 2, "seed_only_epochs": 4}
    (folder / "task.yaml").write_text(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return {name: len(rows) for name, rows in files.items()} | {"seeds": sum(map(len, slices.values()))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--intents", type=int, choices=sorted(SIZES), default=12)
    parser.add_argument("--draws", type=int, default=1, help="few-shot draws (default: 1)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    count, draws = arguments.intents, arguments.draws
    with tempfile.TemporaryDirectory() as temporary:
        root, task = Path(temporary), f"banking{count}"
        folder = root / "tasks" / task
        folder.mkdir(parents=True)
        sizes = build(folder, arguments.data, count, (QUICK if arguments.quick else SIZES)[count], draws, task)
        started = time.perf_counter()
        students = ["smollm2", "minilm"]
        summary, metrics = run_task(root, root / "tasks", task, students)
        figures = figures_of(count, metrics)
        lake = root / "lake" / task
        figures |= {f"n{count}_{name}_rows": value for name, value in sizes.items()}
        figures |= {f"n{count}_draws": draws, f"n{count}_pipeline_s": round(time.perf_counter() - started, 1)}
        figures[f"n{count}_teacher_s"] = round(teacher_seconds(lake), 1)
        figures[f"n{count}_teacher_calls"] = summary.teacher_calls
    for name, value in figures.items():
        print(f"{name:32} {value}")
    if arguments.quick:
        print("quick: these sizes are too small for real figures")
    write_result(wanted(arguments, "banking77"), figures)


def figures_of(count: int, metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for student, values in metrics.items():
        suffix = "" if student == "smollm2" else f"_{student}"
        for system, facts in values["systems"].items():
            shared = system in ("teacher", "centroid")
            out[f"n{count}_{system}{'' if shared else suffix}"] = round(facts["score"]["value"], 4)
        out[f"n{count}_retention{suffix}"] = round(values["retention"]["value"], 4)
        out[f"n{count}_teacher_dev"] = round(values["splits"]["dev"]["systems"]["teacher"]["accuracy"]["value"], 4)
    return out


def teacher_seconds(lake: Path) -> float:
    import polars as pl

    asked = ("teacher_prior", "golden_completions", "teacher_completions")
    files = [file for name in asked for file in (*lake.glob(f"{name}.parquet"), *lake.glob(f"{name}/*.parquet"))]
    records = [json.loads(pl.read_parquet_metadata(file)["distill"]) for file in files]
    return float(sum(record["extra"].get("model_s", 0.0) for record in records))


if __name__ == "__main__":
    main()
