"""Measure the effect of each filter on a student: Banking77 with 12 intents, a weak teacher, MiniLM, three seeds.

Usage: python benchmarks/filter_ablation.py --data FOLDER [--seeds 3] [--seeds-per-intent 40] [--quick] [--home FOLDER]
                                            [--json FILE]

FOLDER holds train.csv and test.csv of Banking77 (Casanueva et al. 2020), in slices by hash. The embedded
teacher answers every seed twice, with the same few examples in all prompts. About one answer in five is wrong. Then
every filter and step of the curation is applied alone, with the values that suit the kind or a named threshold. The
student (MiniLM with an adapter) is trained on the remaining rows and scored on all test queries of these intents.

Figures per variant: dropped rows, the share of kept rows with Banking77's own answer (right), accuracy on golden as the
mean over the seeds, its standard deviation, and the gain over data without filters. If a variant drops a twentieth of
the rows or more, control is the accuracy with as many rows dropped at random, because fewer rows alone cost accuracy. A
seed sets the order of training, the adapter's first weights and the rows that a control drops.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from banking77 import name_intent, read, write_lines, write_yaml
from common import RESULTS, write_result
from replay import distill

from distill_dagster.config import CurationSpec, StudentSpec, Task
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.paths import Home
from distill_dagster.core.text import normalize_text
from distill_dagster.curation.dataset.curate import curate_dataset
from distill_dagster.curation.filters import BUILT_IN_FILTERS, FilterSettings, select_filters
from distill_dagster.curation.scores import add_scores
from distill_dagster.curation.task_view import TaskView
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.pipeline.stages.students import build_train_rows
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.sentences import embed_sentences
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import StudentPrompt, TaskSettings
from distill_dagster.tables.lake import Lake
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tables.schemas import SCORED
from distill_dagster.tasks import TaskFolder

TASK = "ablation"
INTENTS, SLICES = 12, 10
TEACHER: dict[str, Any] = {
    "model": "embedded/smollm2-135m-instruct",
    "api": "text",
    "soft_labels": "logprobs",
    "top_logprobs": 100,
    "boost_labels": True,
    "max_tokens": 1,
    "calibration": "examples",
    "calibration_items": 3,
    "few_shot": {"per_label": 1, "draws": 2, "seed": 4},
}
STUDENT: dict[str, Any] = {
    "model": "all-minilm-l6-v2",
    "architecture": "encoder",
    "lora": {"rank": 16, "alpha": 32},
    "epochs": 5,
    "batch_size": 8,
    "learning_rate": 1.0e-3,
    "soft_weight": 0.2,
    "max_tokens": 192,
}
PLAIN: dict[str, Any] = {
    "filters": {"max_words": 400},
    "dedup": {"near": False},
    "decontamination": False,
    "validation_share": 0.0,
}
"""Nothing but what a dataset cannot be without: answers that are labels, and each text once."""
CONTROLLED = 0.05
"""The share of rows from which on a variant is held against as many rows left out at random."""


def variants(kind: str) -> dict[str, dict[str, Any]]:
    """Return settings of `curation` by name: each filter that suits the kind, then thresholds and steps."""
    found: dict[str, dict[str, Any]] = {}
    for one in BUILT_IN_FILTERS:
        if one.defaults.threshold or one.defaults.always_on or kind in one.defaults.reasoning_kinds:
            continue
        if kind in one.defaults.kinds or one.defaults.on_by_default:
            found[one.name] = {"filters": {one.name: one.defaults.kinds.get(kind) or True}}
    thresholds: dict[str, Any] = {"min_words": [4, 8], "max_words": [20], "min_agreement": [1.0]}
    thresholds |= {"min_confidence": [0.5, 0.7, 0.9], "max_confidence": [0.95]}
    for key, values in thresholds.items():
        found |= {f"{key}_{value:g}": {"filters": {key: value}} for value in values}
    found |= {
        "near_duplicate": {"dedup": {"near": True}},
        "near_duplicate_0.5_from_6_words": {"dedup": {"near": {"threshold": 0.5, "min_words": 6}}},
        "semantic_duplicate_0.95": {"dedup": {"near": False, "semantic": True}},
        "semantic_duplicate_0.85": {"dedup": {"near": False, "semantic": {"threshold": 0.85}}},
        "contaminated": {"decontamination": True},
        **{f"half_{choice}": {"balance": {"max_rows": 0.5, "choice": choice}} for choice in ("best", "diverse")},
        "suited": {"filters": {"preset": "suited"}, "dedup": {"near": True}, "decontamination": True},
    }
    return found


def curation(change: dict[str, Any], rows: int) -> CurationSpec:
    settings = {**PLAIN, **change}
    if "balance" in settings:  # a share of the rows
        settings["balance"] = settings["balance"] | {"max_rows": int(settings["balance"]["max_rows"] * rows)}
    return CurationSpec.model_validate(settings)


def choose_intents(categories: list[str]) -> list[str]:
    """Return the first intent with each first word: the embedded teacher tells labels apart by their first token."""
    first: dict[str, str] = {}
    for name in categories:
        first.setdefault(name.split("_")[0].casefold(), name)
    return list(first.values())[:INTENTS]


def write_task(home: Home, data: Path, per_intent: int) -> None:
    """Write the task folder: 9 examples, one dev and two golden messages for the gate, and the seeds of each intent."""
    folder = home.tasks / TASK
    (folder / "slices").mkdir(parents=True)
    train, test = read(data / "train.csv"), read(data / "test.csv")
    chosen = choose_intents(json.loads((data / "categories.json").read_text()))
    order = random.Random(77)
    held_out = {normalize_text(text) for intent in chosen for text in test[intent]}
    files: dict[str, list[dict[str, str]]] = {"examples": [], "dev": [], "golden": []}
    slices: dict[str, list[str]] = defaultdict(list)
    for intent in chosen:
        texts = sorted({text for text in train[intent] if normalize_text(text) not in held_out})
        order.shuffle(texts)
        golden = sorted(set(test[intent]))
        order.shuffle(golden)
        parts = {"examples": texts[:9], "dev": texts[9:10], "golden": golden[:2]}
        for file, part in parts.items():
            for text in part:
                row = {"id": f"{file}-{len(files[file]) + 1:04}", "text": text, "label": name_intent(intent)}
                files[file].append(row)
        for text in texts[10 : 10 + per_intent]:
            slices[f"bucket-{int(hash_content(text)[:8], 16) % SLICES}"].append(text)
    for file, rows in files.items():
        order.shuffle(rows)
        write_lines(folder / f"{file}.jsonl", rows)
    for key, texts in slices.items():
        value = {"description": "Messages of a bank's customers.", "seeds": sorted(texts)}
        write_yaml(folder / "slices" / f"{key}.yaml", value)
    task = {
        "kind": "classification",
        "description": f"Sort a bank customer's message into one of {INTENTS} intents.",
        "item": "Message",
        "instructions": "Sort the message of a bank's customer into one of the categories.",
        "labels": [{"name": name_intent(intent), "description": name_intent(intent)} for intent in chosen],
        "teacher": TEACHER,
        "gate": {"teacher_over_base": None},
        "default_student": "minilm",
        "students": {"minilm": STUDENT},
    }
    write_yaml(folder / "task.yaml", task)


def candidates(home: Home, folder: TaskFolder) -> pl.DataFrame:
    """Return the scored candidates of all slices, with the scores that the tried filters need."""
    lake = Lake(home.lake, home.reports)
    frames = [lake.read(TASK, "scored_completions", key, SCORED)[0] for key in folder.list_slice_keys()]
    about = TaskView.from_task(folder.task)
    scorers = {
        scorer.name: scorer
        for change in variants(folder.task.kind).values()
        for one in select_filters(FilterSettings.model_validate(curation(change, 100).filters), about)
        for scorer in one.list_scorers()
    }
    return add_scores(pl.concat(frames), list(scorers.values()), about)


class Students:
    """Trains on rows and returns the accuracy on golden, which is cached."""

    def __init__(self, home: Home, task: Task, golden: pl.DataFrame) -> None:
        self._task, self._models, self._golden = task, home.models, golden
        self._kept = home.root / "accuracies"
        self._kept.mkdir(exist_ok=True)

    def accuracy(self, dataset: pl.DataFrame, seed: int) -> float:
        spec: StudentSpec = self._task.students["minilm"].model_copy(update={"seed": seed})
        settings, labels = TaskSettings.from_task(self._task), self._task.labels
        rows = build_train_rows(dataset, "train")
        kept = self._kept / hash_content([spec.model_dump(mode="json"), [asdict(one) for one in rows]])
        if kept.exists():
            return float(kept.read_text())
        with tempfile.TemporaryDirectory() as name:
            adapter = Path(name)
            train_adapter(spec, labels, settings, rows, [], adapter, self._models)
            predictor = load_predictor(spec, labels, settings, self._models, adapter)
            said = predictor.predict([StudentPrompt.from_text(text) for text in self._golden["text"]])
        right = int((pl.Series([one.label for one in said]) == self._golden["label"]).sum())
        kept.with_suffix(".writing").write_text(str(right / len(said)))
        kept.with_suffix(".writing").replace(kept)
        return right / len(said)


def measured(
    students: Students, right: Callable[[pl.DataFrame], float], whole: pl.DataFrame, kept: pl.DataFrame, seeds: int
) -> dict[str, float]:
    """Measure one variant, and a random control of the same size if it drops enough rows."""
    found = [students.accuracy(kept, seed) for seed in range(seeds)]
    out = {"rows": kept.height, "dropped": whole.height - kept.height, "right": round(right(kept), 4)}
    out |= {"accuracy": round(statistics.fmean(found), 4)}
    out |= {"deviation": round(statistics.stdev(found), 4)} if seeds > 1 else {}
    if out["dropped"] >= CONTROLLED * whole.height:
        control = [students.accuracy(whole.sample(kept.height, seed=seed), seed) for seed in range(seeds)]
        out["control"] = round(statistics.fmean(control), 4)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seeds-per-intent", type=int, default=40)
    parser.add_argument("--home", type=Path, help="a folder for answers and accuracies, to continue from")
    parser.add_argument("--quick", action="store_true", help="few rows and one seed, too few for real figures")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    per_intent, seeds = (4, 1) if arguments.quick else (arguments.seeds_per_intent, arguments.seeds)
    data = arguments.data / "banking77" if (arguments.data / "banking77").is_dir() else arguments.data
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.home or Path(temporary)
        home = Home(root=root, tasks=root / "tasks")
        if not (home.tasks / TASK).exists():
            write_task(home, data, per_intent)
        done = distill(home, "backfill", TASK, "--which", "all")
        if done["failed"]:
            raise SystemExit(f"failed: {done['failed']}")
        folder = open_task(home.tasks, TASK, home.accepted)
        figures = ablation(home, folder, data, seeds)
    for name, values in figures["variants"].items():
        print(f"{name:34} " + "  ".join(f"{key} {value}" for key, value in values.items()))
    target = arguments.json or (None if arguments.quick else RESULTS / "filter_ablation.json")
    if target is not None:
        write_result(target, figures)


def labelled(path: Path, labels: list[str]) -> pl.DataFrame:
    """Read `id`, `text` and `label` of the rows of these intents."""
    named = {name_intent(intent): texts for intent, texts in read(path).items()}
    rows = [{"text": text, "label": label} for label in labels for text in sorted(set(named[label]))]
    return pl.DataFrame(rows).with_columns(pl.format(path.stem + ":{}", pl.int_range(pl.len())).alias("id"))


def ablation(home: Home, folder: TaskFolder, data: Path, seeds: int) -> dict[str, Any]:
    scored = candidates(home, folder)
    about, labels = TaskView.from_task(folder.task), folder.task.label_names
    train, golden = (labelled(data / f"{name}.csv", labels) for name in ("train", "test"))
    truth = dict(train.select("text", "label").iter_rows())

    def cut(change: dict[str, Any]) -> pl.DataFrame:
        spec, items = curation(change, scored.height), golden.select("id", "text")
        return curate_dataset(scored, set(), labels, spec, about, items=items, embed=embed).dataset

    def embed(texts: list[str]) -> Any:
        return embed_sentences(texts, home.models)

    def right(dataset: pl.DataFrame) -> float:
        rows = dataset.select("messages", "answer").iter_rows()
        return statistics.fmean(truth[get_user_text(messages)] == json.loads(answer) for messages, answer in rows)

    students, started = Students(home, folder.task, golden), time.perf_counter()
    whole = cut({})
    found = {"nothing": measured(students, right, whole, whole, seeds)}
    kept = {name: cut(change) for name, change in variants(folder.task.kind).items()}
    # The upper bound: knowing which answers are wrong.
    true = [truth[get_user_text(m)] == json.loads(a) for m, a in whole.select("messages", "answer").iter_rows()]
    kept["only_right_answers"] = whole.filter(pl.Series(true))
    for name, rows in kept.items():
        if rows.height == whole.height:
            found[name] = {"rows": rows.height, "dropped": 0}
        else:
            found[name] = measured(students, right, whole, rows, seeds)
            found[name]["gain"] = round(found[name]["accuracy"] - found["nothing"]["accuracy"], 4)
        print(f"[{time.perf_counter() - started:6.0f} s] {name}: {found[name]}", file=sys.stderr, flush=True)
    return {"variants": found, "seeds": seeds, "golden": golden.height}


if __name__ == "__main__":
    main()
