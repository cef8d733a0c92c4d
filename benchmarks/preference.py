"""Measure what preference pairs add: CommonsenseQA, SFT on a teacher's answers alone and with DPO after it.

Usage: python benchmarks/preference.py --data FOLDER [--rows 1200] [--test 400] [--seeds 3]
           [--systems sft dpo sft_right dpo_right dpo_only] [--quick] [--json FILE]

FOLDER holds questions.jsonl and the recorded answers of two teachers to the same questions, a stronger one
(completions-palm.jsonl) and a weaker one (completions-llama3-8b.jsonl). The student, SmolLM2 135M, writes the text of
one of five choices. It learns `rows` answers of the stronger teacher, right or wrong. A pair is a question that the
stronger teacher answered rightly and the weaker one wrongly. People's labels say which: without them such a pair needs
a judge or a vote. So a control learns from the same labels without pairs.

Systems, each scored on `test` other questions by exact match:
    sft         the stronger teacher's answers
    dpo         sft, then the pairs
    sft_right   sft without the wrong answers: the control
    dpo_right   sft_right, then the pairs
    dpo_only    sft, then the pairs with sft_weight 0

Each figure is written as soon as it is measured. A mean is over the seeds that have it.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import summarize, wanted, write_result

from distill_dagster.config import StudentSpec
from distill_dagster.core.paths import Home
from distill_dagster.core.text import normalize_text
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.phases.run import run_phases
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import PreferencePair, StudentPrompt, TaskSettings, TrainRow

SETTINGS = TaskSettings("Question")
WRITER: dict[str, Any] = {
    "model": "smollm2-135m-instruct",
    "architecture": "causal_lm",
    "prompt": "plain",
    "dtype": "auto",
    "lora": {"rank": 16, "alpha": 32, "last_layers": 10},
    "epochs": 3,
    "batch_size": 16,
    "learning_rate": 1.0e-3,
    "max_tokens": 128,
}
"""The student of tasks with written answers."""
SFT = WRITER | {"patience": None, "answer_tokens": 24}
DPO: dict[str, Any] = {"kind": "preference", "beta": 0.1, "epochs": 1, "batch_size": 8, "learning_rate": 5.0e-5}
SYSTEMS: dict[str, tuple[str, float] | None] = {
    "sft": None,
    "dpo": ("sft", 1),
    "sft_right": None,
    "dpo_right": ("sft_right", 1),
    "dpo_only": ("sft", 0),
}
"""Each with the system before its phase and the phase's sft_weight; None: it has no phase."""
ANSWER = re.compile(r"answer is \(([a-e])\)", re.IGNORECASE)


def read_questions(folder: Path) -> list[dict[str, Any]]:
    """Questions with both teachers' answers as the text of a choice, or None where none can be read."""
    given = {name: read_completions(folder / f"completions-{name}.jsonl") for name in ("palm", "llama3-8b")}
    questions = []
    for line in (folder / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        found = {name: ANSWER.search(completions.get(one["id"], "")) for name, completions in given.items()}
        chosen = {name: one["choices"]["abcde".index(m[1].lower())] if m else None for name, m in found.items()}
        letters = "\n".join(f"({letter}) {choice}" for letter, choice in zip("abcde", one["choices"], strict=True))
        questions.append(
            one | {"text": f"{one['question']}\n{letters}", "strong": chosen["palm"], "weak": chosen["llama3-8b"]}
        )
    return questions


def read_completions(path: Path) -> dict[str, str]:
    """Completions by id, without the questions that a teacher wrote after its answer."""
    lines = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return {line["id"]: re.split(r"\s*Q:", line["completion"])[0] for line in lines}


def build_row(question: dict[str, Any], answer: str) -> TrainRow:
    return TrainRow(question["id"], StudentPrompt.from_text(question["text"]), answer, target=answer)


def score(student: FreeTextStudent, questions: list[dict[str, Any]]) -> float:
    """Accuracy of the written answers by exact match, case aside."""
    student.model.eval()
    right = 0
    order = sorted(questions, key=lambda one: len(one["text"]))
    for start in range(0, len(order), 32):
        part = order[start : start + 32]
        found = student.predict_batch([StudentPrompt.from_text(one["text"]) for one in part])
        for one, prediction in zip(part, found, strict=True):
            words = prediction.label.partition("Answer:")[2]
            right += normalize_text(words) == normalize_text(one["answer"])
    return round(right / len(questions), 4)


def train(spec: StudentSpec, rows: list[TrainRow], folder: Path, models: Path, what: str) -> None:
    train_adapter(spec, [], SETTINGS, rows, [], folder, models, None, what)


def load(spec: StudentSpec, folder: Path, models: Path) -> FreeTextStudent:
    """The trained student, ready to be trained on."""
    student = FreeTextStudent(spec, [], SETTINGS, models)
    student.load_adapter(folder, merge=False)
    for name, parameter in student.model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return student


class Seed:
    """Questions and systems of one seed, which chooses the questions as well."""

    def __init__(self, questions: list[dict[str, Any]], rows: int, test: int, seed: int, models: Path, work: Path):
        self._settings, self._models, self._work = SFT | {"seed": seed}, models, work
        order = random.Random(seed).sample(questions, len(questions))
        self._held, self._taught = order[:test], [one for one in order[test:] if one["strong"]][:rows]
        self._pairs = [
            PreferencePair(build_row(one, one["strong"]), build_row(one, one["weak"]))
            for one in self._taught
            if one["weak"] and one["strong"] == one["answer"] != one["weak"]
        ]
        right = sum(one["strong"] == one["answer"] for one in self._held)
        self.figures: dict[str, Any] = {
            "rows": len(self._taught),
            "pairs": len(self._pairs),
            "teacher": round(right / len(self._held), 4),
        }

    def measure(self, system: str) -> None:
        """Add the accuracy of a system to the figures, and how it was reached."""
        started = time.perf_counter()
        phase = SYSTEMS[system]
        if phase:
            base, weight = phase
            spec = StudentSpec.model_validate(self._settings | {"then": [DPO | {"sft_weight": weight}]})
            student = load(spec, self._train(base), self._models)
            [log] = run_phases(student, [], self._pairs, self._models, dict, system)
            self.figures[f"{system}_preferred"] = statistics.mean(log.metrics["rewards/accuracies"][-10:])
        else:
            student = load(StudentSpec.model_validate(self._settings), self._train(system), self._models)
        self.figures[system] = score(student, self._held)
        self.figures[f"{system}_s"] = round(time.perf_counter() - started)

    def _train(self, system: str) -> Path:
        """The folder with the student after SFT."""
        folder = self._work / system
        if not folder.exists():
            kept = [one for one in self._taught if system == "sft" or one["strong"] == one["answer"]]
            part = [build_row(one, one["strong"]) for one in kept]
            self.figures[f"{system}_rows"] = len(part)
            train(StudentSpec.model_validate(self._settings), part, folder, self._models, system)
        return folder


def average(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of each figure, over the seeds that have it."""
    figures: dict[str, Any] = {"seeds": len(found)}
    for name in dict.fromkeys(name for one in found for name in one):
        values = [one[name] for one in found if name in one]
        figures[name], deviation = summarize(values)
        if name in SYSTEMS:
            figures |= {f"{name}_sd": deviation, f"{name}_seeds": len(values)}
        elif isinstance(values[0], int):  # rows, pairs, seconds
            figures[name] = round(figures[name])
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder commonsenseqa")
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=[*SYSTEMS])
    parser.add_argument("--quick", action="store_true", help="48 rows, 16 questions, one seed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows, test, seeds = (48, 16, 1) if arguments.quick else (arguments.rows, arguments.test, arguments.seeds)
    questions = read_questions(arguments.data)
    models, found = Home.from_env().models, list[dict[str, Any]]()
    for number in range(seeds):
        with tempfile.TemporaryDirectory() as work:
            seed = Seed(questions, rows, test, number, models, Path(work))
            found.append(seed.figures)
            for system in arguments.systems:
                seed.measure(system)
                print(json.dumps(seed.figures), flush=True)
                write_result(wanted(arguments, "preference"), {"preference": average(found)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
