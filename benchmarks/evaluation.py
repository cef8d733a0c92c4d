"""Measure batched prediction against prediction one by one: Banking77 by an encoder and by a model that writes.

Usage: python benchmarks/evaluation.py --data FOLDER [--only classifier generator chooser] [--quick] [--json FILE]

FOLDER holds Banking77's train.csv, test.csv and categories.json (PolyAI, CC BY 4.0). The encoder classifies all 3,080
messages of test.csv into 77 intents. It is not trained, since that changes no speed. The generator writes the intent of
300 of them. It is trained on two messages per intent, so that its answers end as those of a student do. The chooser is
the same model, not trained, that gives all 77 intents a probability, for 40 messages.

`<name>_ratio` is rows per CPU second in batches, divided by rows per CPU second one by one, in the same process. The
batches run before and after, and count with their mean. `<name>_agreement` is the share of rows with the same answer
both ways. `<name>_rows_per_s` and `<name>_rows_per_s_one_by_one` are rows per second of the clock.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import wanted, write_result

from distill_dagster.config import LabelSpec, StudentSpec
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.student.predict import load_predictor
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import Prediction, Predictor, StudentPrompt, TaskSettings, TrainRow

MODELS = PROJECT_FOLDER / "data" / "models"
ENCODER = StudentSpec(model="all-minilm-l6-v2", architecture="encoder")
CAUSAL = StudentSpec.model_validate(
    {
        "model": "smollm2-135m-instruct",
        "architecture": "causal_lm",
        "prompt": "plain",
        "answer_tokens": 24,
        "lora": {"rank": 16, "alpha": 32, "last_layers": 10},
        "epochs": 2,
        "learning_rate": 1.0e-3,
        "max_tokens": 192,
    }
)
SETTINGS = TaskSettings("Message", "Name the intent of a bank's customer.")
ROWS = {"classifier": 3080, "generator": 300, "chooser": 40}
QUICK_ROWS = {"classifier": 200, "generator": 16, "chooser": 8}
TAUGHT_PER_INTENT = 2


def read_messages(file: Path) -> list[tuple[str, str]]:
    """Text and intent of every message of one of Banking77's files."""
    with file.open(encoding="utf-8", newline="") as opened:
        return [(row["text"], row["category"]) for row in csv.DictReader(opened)]


def report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def train_generator(data: Path, intents: list[str], quick: bool, folder: Path) -> Predictor:
    """A student that writes the intent, trained on the first messages of each."""
    taught: dict[str, list[str]] = {intent: [] for intent in intents[:10] if quick} or {i: [] for i in intents}
    for text, intent in read_messages(data / "train.csv"):
        if len(taught.get(intent, "..")) < TAUGHT_PER_INTENT:
            taught[intent].append(text)
    rows = [
        TrainRow(text, StudentPrompt.from_text(text), intent, target=intent)
        for intent, texts in taught.items()
        for text in texts
    ]
    report(f"training the generator on {len(rows)} messages")
    train_adapter(CAUSAL, [], SETTINGS, rows, [], folder, MODELS)
    return load_predictor(CAUSAL, [], SETTINGS, MODELS, folder)


def compare(name: str, predictor: Predictor, prompts: list[StudentPrompt]) -> dict[str, Any]:
    """Figures of one predictor: batches, one by one, batches."""
    predictor.predict(prompts[:8])  # warm up
    report(f"{name}: {len(prompts)} rows in batches")
    first, answers = time_batches(predictor, prompts)
    report(f"{name}: {len(prompts)} rows one by one")
    alone, singles = time_one_by_one(name, predictor, prompts)
    last, _ = time_batches(predictor, prompts)
    batched = [(a + b) / 2 for a, b in zip(first, last, strict=True)]
    same = sum(a.label == b.label for a, b in zip(answers, singles, strict=True))
    figures = {
        f"{name}_ratio": round(alone[0] / batched[0], 2),
        f"{name}_agreement": round(same / len(prompts), 4),
        f"{name}_rows": len(prompts),
        f"{name}_cpu_ms": round(1000 * batched[0] / len(prompts), 3),
        f"{name}_cpu_ms_one_by_one": round(1000 * alone[0] / len(prompts), 3),
        f"{name}_rows_per_s": round(len(prompts) / batched[1], 1),
        f"{name}_rows_per_s_one_by_one": round(len(prompts) / alone[1], 1),
    }
    report(json.dumps(figures, indent=1))
    return figures


def time_batches(predictor: Predictor, prompts: list[StudentPrompt]) -> tuple[tuple[float, float], list[Prediction]]:
    """CPU and clock seconds of all rows in batches, and the answers."""
    cpu, clock = time.process_time(), time.perf_counter()
    answers = predictor.predict(prompts)
    return (time.process_time() - cpu, time.perf_counter() - clock), answers


def time_one_by_one(
    name: str, predictor: Predictor, prompts: list[StudentPrompt]
) -> tuple[tuple[float, float], list[Prediction]]:
    """CPU and clock seconds of all rows one after the other, and the answers."""
    answers: list[Prediction] = []
    cpu, clock = time.process_time(), time.perf_counter()
    for number, prompt in enumerate(prompts, 1):
        answers += predictor.predict([prompt])
        if number % max(1, len(prompts) // 10) == 0:
            report(f"{name}: {number} of {len(prompts)}")
    return (time.process_time() - cpu, time.perf_counter() - clock), answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with Banking77's files")
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="what is measured")
    parser.add_argument("--quick", action="store_true", help="fewer rows, in less than a minute")
    parser.add_argument("--json", type=Path, help="where the figures go; with --quick they go nowhere else")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    intents = json.loads((arguments.data / "categories.json").read_text(encoding="utf-8"))
    messages = [StudentPrompt.from_text(text) for text, _ in read_messages(arguments.data / "test.csv")]
    counts = QUICK_ROWS if arguments.quick else ROWS
    labels = [LabelSpec(name=name, description=name.replace("_", " ")) for name in intents]

    def choose(name: str) -> list[StudentPrompt]:
        return messages[:: max(1, len(messages) // counts[name])][: counts[name]]

    figures: dict[str, Any] = {"threads": torch.get_num_threads()}
    with tempfile.TemporaryDirectory() as folder:
        load = {
            "classifier": lambda: load_predictor(ENCODER, labels, SETTINGS, MODELS),
            "generator": lambda: train_generator(arguments.data, intents, arguments.quick, Path(folder)),
            "chooser": lambda: load_predictor(CAUSAL, labels, SETTINGS, MODELS),
        }
        for name in arguments.only:
            figures |= compare(name, load[name](), choose(name))
            write_result(wanted(arguments, "evaluation"), figures)
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
