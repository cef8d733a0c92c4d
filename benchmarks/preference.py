"""Measure what preference pairs add: CommonsenseQA, SFT on a teacher's answers alone and with DPO after it.

Usage: python benchmarks/preference.py --data FOLDER [--rows 1200] [--test 400] [--seeds 3] [--quick] [--json FILE]

FOLDER holds questions.jsonl and the recorded answers of two teachers to the same questions, a stronger one
(completions-palm.jsonl) and a weaker one (completions-llama3-8b.jsonl). The student, SmolLM2 135M, writes the text of
one of five choices. It learns `rows` answers of the stronger teacher, right or wrong. A pair is a question that the
stronger teacher answered rightly and the weaker one wrongly. People's labels say which: without them such a pair needs
a judge or a vote. So a control learns from the same labels without pairs.

Systems, each scored on `test` other questions by exact match:
    sft         the stronger teacher's answers
    sft_right   the same without its wrong answers: the control
    dpo         sft, then the pairs
    dpo_only    sft, then the pairs with sft_weight 0
    dpo_right   sft_right, then the pairs
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

from common import wanted, write_result

from distill_dagster.config import StudentSpec
from distill_dagster.core.paths import Home
from distill_dagster.core.text import normalize_text
from distill_dagster.student.free_text import FreeTextStudent
from distill_dagster.student.phases.run import run_phases
from distill_dagster.student.train import train_adapter
from distill_dagster.student.types import PreferencePair, StudentPrompt, TaskSettings, TrainRow

SETTINGS = TaskSettings("Question")
SFT: dict[str, Any] = {
    "model": "smollm2-135m-instruct",
    "architecture": "causal_lm",
    "prompt": "plain",
    "dtype": "auto",
    "lora": {"rank": 16, "alpha": 32, "last_layers": 10},
    "epochs": 2,
    "patience": None,
    "batch_size": 8,
    "learning_rate": 5.0e-4,
    "max_tokens": 112,
    "answer_tokens": 12,
}
PHASE: dict[str, Any] = {"kind": "preference", "beta": 0.1, "epochs": 2, "batch_size": 8, "learning_rate": 1.0e-4}
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


def run_seed(
    questions: list[dict[str, Any]], rows: int, test: int, seed: int, models: Path, work: Path
) -> dict[str, Any]:
    """The accuracy of every system of one seed, which chooses the questions as well."""
    spec = StudentSpec.model_validate(SFT | {"seed": seed})
    order = random.Random(seed).sample(questions, len(questions))
    held, taught = order[:test], [one for one in order[test:] if one["strong"]][:rows]
    pairs = [
        PreferencePair(build_row(one, one["strong"]), build_row(one, one["weak"]))
        for one in taught
        if one["weak"] and one["strong"] == one["answer"] != one["weak"]
    ]
    figures: dict[str, Any] = {"rows": len(taught), "pairs": len(pairs)}
    figures["teacher"] = round(sum(one["strong"] == one["answer"] for one in held) / len(held), 4)
    every = [build_row(one, one["strong"]) for one in taught]
    right = [row for row, one in zip(every, taught, strict=True) if one["strong"] == one["answer"]]
    for name, part in (("sft", every), ("sft_right", right)):
        started = time.perf_counter()
        train(spec, part, work / name, models, name)
        figures |= {name: score(load(spec, work / name, models), held), f"{name}_s": time.perf_counter() - started}
    for name, base, weight in (("dpo", "sft", 1), ("dpo_only", "sft", 0), ("dpo_right", "sft_right", 1)):
        started = time.perf_counter()
        phase = StudentSpec.model_validate(SFT | {"seed": seed, "then": [PHASE | {"sft_weight": weight}]})
        student = load(phase, work / base, models)
        [log] = run_phases(student, [], pairs, models, dict, name)
        figures |= {name: score(student, held), f"{name}_s": time.perf_counter() - started}
        figures[f"{name}_preferred"] = statistics.mean(log.metrics["rewards/accuracies"][-10:])
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder commonsenseqa")
    parser.add_argument("--rows", type=int, default=1200)
    parser.add_argument("--test", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="48 rows, 16 questions, one seed")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows, test, seeds = (48, 16, 1) if arguments.quick else (arguments.rows, arguments.test, arguments.seeds)
    questions = read_questions(arguments.data)
    models, found = Home.from_env().models, list[dict[str, Any]]()
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as work:
            found.append(run_seed(questions, rows, test, seed, models, Path(work)))
        print(json.dumps(found[-1]), flush=True)
        names = [name for name in found[0] if not name.endswith("_s")]
        means = {name: round(statistics.mean(one[name] for one in found), 4) for name in names}
        spread = {f"{n}_sd": round(statistics.pstdev(one[n] for one in found), 4) for n in names}
        write_result(wanted(arguments, "preference"), {"preference": means | spread | {"seeds": seed + 1}})
    return 0


if __name__ == "__main__":
    sys.exit(main())
