"""Banking77 (Casanueva et al. 2020), 77 intents, distilled from a recorded frontier teacher through the whole pipeline.

Usage: python benchmarks/banking77.py --data FOLDER [--students minilm smollm2] [--seeds 3] [--home FOLDER] [--quick]
                                      [--json FILE]

FOLDER holds Banking77's train.csv and test.csv (PolyAI, CC BY 4.0), completions-frontier.jsonl with the labels and
probabilities of the teacher, and examples-frontier.jsonl with the human examples. The recording was made for this
benchmark: a frontier-class LLM of 2026 read the names of the intents and three example messages of each, then every
message by itself. It knows the labelling habits of this public data set to some degree, so its accuracy here may be
optimistic.

Examples (3 per intent), dev (3) and seeds (20) are train messages, golden (8) are test messages. They were drawn by
their human intents, and nothing else of the seeds' human labels is used. Settings were chosen on dev and, since 231
messages tell little, on 1,500 other messages of train.csv, never on golden.

`distilled` learns from the teacher's rows alone, `combined` from the human examples too, `seed_only` from the human
examples alone. Learning curves and hard labels are trained on the pipeline's dataset: the first seeds of each intent,
or the same rows with the teacher's label alone. A seed sets the order of rows and the first weights of the adapter.
"""

from __future__ import annotations

import argparse
import csv
import json
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
import yaml
from common import run_task, wanted, write_result

from distill_dagster.config import StudentSpec
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.paths import Home
from distill_dagster.curation.soft_labels.reliability import measure_reliability
from distill_dagster.curation.soft_labels.temperature import SoftAnswer, fit_temperature, rescale_soft_labels_expr
from distill_dagster.pipeline.open_task import open_task
from distill_dagster.pipeline.stages.students import build_train_rows
from distill_dagster.student.predict import build_linear_probe_predictor, load_predictor
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import Predictor, StudentPrompt, TaskSettings, TrainRow
from distill_dagster.tables.lake import Lake
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tables.schemas import DATASET
from distill_dagster.tasks import TaskFolder

TASK = "banking77"
SLICES = 4
PER_INTENT: tuple[int, ...] = (5, 10, 20)
"""Seeds per intent in the learning curves. The recording has 20."""
QUICK = {"seed": 2, "dev": 1, "golden": 1}
STUDENTS: dict[str, dict[str, Any]] = {
    "minilm": {
        "model": "all-minilm-l6-v2",
        "architecture": "encoder",
        "lora": {"rank": 64, "alpha": 64},
        "epochs": 12,
        "patience": None,
        "seed_only_epochs": 20,
        "batch_size": 16,
        "learning_rate": 7.0e-4,
        "soft_weight": 0.5,
        "max_tokens": 96,
    },
    "smollm2": {
        "model": "smollm2-135m-instruct",
        "architecture": "causal_lm",
        "prompt": "plain",
        "dtype": "auto",
        "lora": {"rank": 16, "alpha": 32, "last_layers": 10},
        "epochs": 3,
        "seed_only_epochs": 6,
        "batch_size": 16,
        "learning_rate": 1.0e-3,
        "soft_weight": 0.5,
        "max_tokens": 96,
    },
}
NOTE = (
    "Banking77 (Casanueva et al. 2020; PolyAI, CC BY 4.0). f77_: a frontier-class LLM of 2026 is the teacher, "
    "recorded. It knows the labelling habits of this public data set to some degree, so its accuracy here may be "
    "optimistic."
)


def read(path: Path) -> dict[str, list[str]]:
    """Read the texts of each intent from train.csv or test.csv."""
    rows: dict[str, list[str]] = defaultdict(list)
    for text, category in read_rows(path):
        rows[category].append(text)
    return rows


def read_rows(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8") as handle:
        return [(" ".join(row["text"].split()), row["category"]) for row in csv.DictReader(handle)]


def name_intent(category: str) -> str:
    """Return the name of an intent in words."""
    return category.replace("_", " ").replace("?", "")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_recording(data: Path, quick: bool) -> list[dict[str, Any]]:
    """Read the teacher's answers: role, text, label, probs, and the human label as `intent`.

    `number` counts the rows of a role and an intent from 0. `quick` keeps few of each.
    """
    human = {name: read_rows(data / name) for name in ("train.csv", "test.csv")}
    counts: dict[tuple[str, str], int] = defaultdict(int)
    rows = []
    for record in read_json_lines(data / "completions-frontier.jsonl"):
        text, category = human[record["file"]][record["row"]]
        role, intent = record["role"], name_intent(category)
        number = counts[role, intent]
        counts[role, intent] += 1
        if quick and number >= QUICK[role]:
            continue
        probs = {name_intent(label): prob for label, prob in record["probs"].items()}
        own = {"role": role, "text": text, "label": name_intent(record["label"]), "probs": probs}
        rows.append(own | {"intent": intent, "number": number})
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def write_task(folder: Path, data: Path, recording: list[dict[str, Any]], students: list[str]) -> None:
    """Write the task folder."""
    examples = read_json_lines(data / "examples-frontier.jsonl")
    files = {"examples": [(" ".join(row["text"].split()), name_intent(row["label"])) for row in examples]}
    files |= {name: [(r["text"], r["intent"]) for r in recording if r["role"] == name] for name in ("dev", "golden")}
    for name, rows in files.items():
        labelled = [{"id": f"{name}-{n:04}", "text": text, "label": label} for n, (text, label) in enumerate(rows, 1)]
        write_lines(folder / f"{name}.jsonl", labelled)
    answers = [{name: row[name] for name in ("text", "label", "probs")} for row in recording]
    write_lines(folder / "recorded" / "frontier.jsonl", answers)
    slices: dict[str, list[str]] = defaultdict(list)
    for row in recording:
        if row["role"] == "seed":
            slices[f"bucket-{int(hash_content(row['text'])[:8], 16) % SLICES}"].append(row["text"])
    for key, texts in slices.items():
        value = {"description": "Messages of a bank's customers.", "seeds": sorted(texts)}
        write_yaml(folder / "slices" / f"{key}.yaml", value)
    intents = sorted(name_intent(name) for name in json.loads((data / "categories.json").read_text()))
    task = {
        "kind": "classification",
        "description": "Sort a bank customer's message into one of 77 intents.",
        "item": "Message",
        "instructions": "Sort the message of a bank's customer into one of the categories.",
        "labels": [{"name": name, "description": name} for name in intents],
        "teacher": {"model": "replay/frontier", "terms": {"acknowledged": True}},
        "gate": {"teacher_over_base": None},
        "default_student": students[0],
        "students": {name: STUDENTS[name] for name in students},
        "curation": {"mix_examples": False, "filters": {"max_words": 200}},
        "evaluation": {"bootstrap_samples": 2000, "latency_items": 40},
    }
    write_yaml(folder / "task.yaml", task)


def write_yaml(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), encoding="utf-8")


def measure_pipeline(home: Home, students: list[str]) -> dict[str, Any]:
    """Run the task. Accuracies on golden; those of a student end with its name."""
    started = time.perf_counter()
    _, metrics = run_task(home.root, home.tasks, TASK, students)
    figures: dict[str, Any] = {"f77_pipeline_s": round(time.perf_counter() - started, 1)}
    for student, values in metrics.items():
        for system, facts in values["systems"].items():
            shared = system in ("teacher", "centroid", "linear_probe")
            figures[f"f77_{system}{'' if shared else f'_{student}'}"] = round(facts["score"]["value"], 4)
        figures[f"f77_retention_{student}"] = round(values["retention"]["value"], 4)
        dev = {name: facts["accuracy"]["value"] for name, facts in values["splits"]["dev"]["systems"].items()}
        figures["f77_teacher_dev"] = round(dev["teacher"], 4)
        figures[f"f77_distilled_{student}_dev"] = round(dev["distilled"], 4)
    return figures


class Trainer:
    """Trains on rows of the pipeline's dataset. Returns the accuracies on golden and dev, which are cached."""

    def __init__(self, home: Home, folder: TaskFolder, recording: list[dict[str, Any]]) -> None:
        self._home, self._task = home, folder.task
        self._held_out = [row for row in recording if row["role"] in ("golden", "dev")]
        self._numbers = {row["text"]: row["number"] for row in recording if row["role"] == "seed"}
        self._dataset = Lake(home.lake, home.reports).read(TASK, "filtered_dataset", None, DATASET)[0]
        self._human = [
            TrainRow(row.id, StudentPrompt.from_text(row.text), json.loads(row.answer_json)) for row in folder.examples
        ]
        self._cache = home.root / "accuracies"
        self._cache.mkdir(exist_ok=True)

    def measure(self, per_intent: int, human: bool = False, **change: Any) -> dict[str, float]:
        """Train minilm, with changed settings, on the first seeds of each intent.

        `human` adds the human examples with weight 1, as `curation.mix_examples` does.
        """
        spec = StudentSpec.model_validate(self._task.students["minilm"].model_dump() | change)
        labels, settings = self._task.labels, TaskSettings.from_task(self._task)
        rows, validation = self._select(per_intent)
        rows += self._human if human else []

        def load(adapter: Path) -> Predictor:
            train_adapter(spec, labels, settings, rows, validation, adapter, self._home.models)
            return load_predictor(spec, labels, settings, self._home.models, adapter)

        return self._measure_once({"change": change, "spec": spec.model_dump(mode="json")}, rows, load)

    def measure_probe(self, per_intent: int) -> dict[str, float]:
        """Fit the linear probe on the first seeds of each intent."""
        rows, validation = self._select(per_intent)
        labels, models = self._task.labels, self._home.models
        return self._measure_once(
            {"change": "probe"}, rows, lambda _: build_linear_probe_predictor(rows, validation, labels, models)
        )

    def _select(self, per_intent: int) -> tuple[list[TrainRow], list[TrainRow]]:
        numbers = [self._numbers[get_user_text(messages)] for messages in self._dataset["messages"]]
        part = self._dataset.filter(pl.Series(numbers) < per_intent)
        return build_train_rows(part, "train"), build_train_rows(part, "validation")

    def _measure_once(
        self, key: dict[str, Any], rows: list[TrainRow], load: Callable[[Path], Predictor]
    ) -> dict[str, float]:
        kept = self._cache / hash_content([key, [asdict(row) for row in rows]])
        if not kept.exists():
            started = time.perf_counter()
            with tempfile.TemporaryDirectory() as name:
                predictions = load(Path(name)).predict([StudentPrompt.from_text(row["text"]) for row in self._held_out])
            accuracies = {
                role: statistics.fmean(
                    one.label == row["intent"]
                    for one, row in zip(predictions, self._held_out, strict=True)
                    if row["role"] == role
                )
                for role in ("golden", "dev")
            }
            kept.write_text(json.dumps(accuracies))
            about = f"{len(rows)} rows, {key['change']}: dev {accuracies['dev']:.4f}"
            print(f"[{time.perf_counter() - started:6.0f} s] {about}", file=sys.stderr, flush=True)
        found: dict[str, float] = json.loads(kept.read_text())
        return found


def measure_curves(trainer: Trainer, seeds: int, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Accuracies on golden: learning curves, the human examples added, and soft against hard labels."""
    figures: dict[str, Any] = {}
    for size in sizes:
        figures[f"f77_linear_probe_at_{size}"] = round(trainer.measure_probe(size)["golden"], 4)
        figures[f"f77_minilm_at_{size}"] = round(trainer.measure(size)["golden"], 4)
    figures["f77_combined_minilm"] = round(trainer.measure(sizes[-1], human=True)["golden"], 4)
    soft = [trainer.measure(sizes[-1], seed=seed)["golden"] for seed in range(seeds)]
    hard = [trainer.measure(sizes[-1], seed=seed, soft_weight=0.0)["golden"] for seed in range(seeds)]
    differences = [a - b for a, b in zip(soft, hard, strict=True)]
    for name, values in (("soft", soft), ("hard", hard), ("soft_minus_hard", differences)):
        figures[f"f77_{name}"] = round(statistics.fmean(values), 4)
        if seeds > 1:
            figures[f"f77_{name}_deviation"] = round(statistics.stdev(values), 4)
    return figures


def measure_calibration(recording: list[dict[str, Any]]) -> dict[str, Any]:
    """The teacher's expected calibration error before and after a temperature, which is fitted on dev."""
    fit = fit_temperature(
        [SoftAnswer(row["probs"], row["label"], row["intent"]) for row in recording if row["role"] == "dev"]
    )
    figures: dict[str, Any] = {"f77_temperature": fit.temperature}
    for role in ("dev", "seed", "golden"):
        rows = [row for row in recording if row["role"] == role]
        for suffix, temperature in (("", 1.0), ("_rescaled", fit.temperature)):
            found = measure_reliability(
                scale_confidences(rows, temperature), [row["label"] == row["intent"] for row in rows]
            )
            assert found is not None
            figures[f"f77_ece_{role}{suffix}"] = round(found.ece, 4)
            if not suffix:
                figures[f"f77_ece_{role}_chance"] = round(found.chance_ece, 4)
    return figures


def scale_confidences(rows: list[dict[str, Any]], temperature: float) -> list[float]:
    """The probability of each answer at a temperature, as `curation.rescale_soft_labels` computes it."""
    named = [[{"label": label, "prob": prob} for label, prob in row["probs"].items()] for row in rows]
    frame = pl.DataFrame({"teacher": ["frontier"] * len(rows), "soft_labels": named})
    scaled = frame.select(rescale_soft_labels_expr({"frontier": temperature})).to_series()
    return [
        next(entry["prob"] for entry in probs if entry["label"] == row["label"])
        for row, probs in zip(rows, scaled, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--students", nargs="+", choices=sorted(STUDENTS), default=sorted(STUDENTS))
    parser.add_argument("--seeds", type=int, default=3, help="trainings with soft and with hard labels (default: 3)")
    parser.add_argument("--home", type=Path, help="a folder for the lake and the accuracies, to continue from")
    parser.add_argument("--quick", action="store_true", help="few rows and one epoch, too few for real figures")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    data = arguments.data / "banking77" if (arguments.data / "banking77").is_dir() else arguments.data
    recording = read_recording(data, arguments.quick)
    sizes = PER_INTENT
    if arguments.quick:
        sizes = (1, QUICK["seed"])
        for student in STUDENTS.values():
            student |= {"epochs": 1, "seed_only_epochs": 1}
    target = wanted(arguments, "banking77")

    def record(figures: dict[str, Any]) -> None:
        for name, value in figures.items():
            print(f"{name:32} {value}", flush=True)
        write_result(target, figures, note=NOTE)

    rows = {f"f77_{name}_rows": sum(row["role"] == name for row in recording) for name in QUICK}
    record(rows | measure_calibration(recording))
    with tempfile.TemporaryDirectory() as temporary:
        root = (arguments.home or Path(temporary)).resolve()
        home = Home(root=root, tasks=root / "tasks")
        (home.tasks / TASK).mkdir(parents=True, exist_ok=True)
        write_task(home.tasks / TASK, data, recording, arguments.students)
        record(measure_pipeline(home, arguments.students))
        if "minilm" in arguments.students:
            trainer = Trainer(home, open_task(home.tasks, TASK, home.accepted), recording)
            record(measure_curves(trainer, 1 if arguments.quick else arguments.seeds, sizes))
    if arguments.quick:
        print("quick: these sizes are too small for real figures")


if __name__ == "__main__":
    main()
