"""What benchmarks/students.py teaches and tests: rows of recorded teachers, human labels and held-out items."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import banking77
import preference
import yaml

from distill_dagster.config import LabelSpec
from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.core.text import normalize_text
from distill_dagster.kinds import format_with_reasoning
from distill_dagster.kinds.arithmetic import NotANumberError, evaluate_expression
from distill_dagster.student.types import StudentPrompt, TaskSettings, TrainRow

TICKETS = PROJECT_FOLDER / "data" / "tasks" / "support_triage"
VALIDATION_SHARE = 0.1
CQA_HELD_OUT = 1221
"""As many questions as the official validation set has. They are drawn from the training set, whose labels are open."""


@dataclass
class Source:
    """One data set with its teacher.

    `human` are human labels that are not held out, in the order in which they are used; the first `examples` of them
    are those that the teacher saw, 3 per label. `golden` has prompts with their right answers.
    """

    name: str
    settings: TaskSettings
    taught: list[TrainRow]
    golden: list[tuple[str, str]]
    teacher: float
    students: dict[str, dict[str, Any]]
    labels: list[LabelSpec] = field(default_factory=list)
    human: list[TrainRow] = field(default_factory=list)
    examples: int = 0
    agreed: set[str] = field(default_factory=set)
    """Ids of the rows on which two teachers agree."""
    is_right: Callable[[str, str], bool] = str.__eq__
    """Whether an answer is right, given the reference."""

    def split(self, rows: list[TrainRow]) -> tuple[list[TrainRow], list[TrainRow]]:
        """Rows to learn from and rows for validation. It depends on the ids alone, so that parts stay comparable."""
        held = set(
            random.Random("validation").sample(sorted(r.prompt_id for r in rows), int(VALIDATION_SHARE * len(rows)))
        )
        return [r for r in rows if r.prompt_id not in held], [r for r in rows if r.prompt_id in held]

    def shorten(self, rows: int, items: int) -> None:
        """Keep few rows and items, for `--quick`."""
        self.taught, self.human, self.golden = self.taught[:rows], self.human[:rows], self.golden[:items]


def read_banking77(data: Path) -> Source:
    """Banking77: 20 messages per intent with a frontier teacher's probabilities, 300 human labels, 616 golden."""
    folder = data / "banking77"
    recording = banking77.read_recording(folder, quick=False)
    golden = [(row["text"], row["intent"]) for row in recording if row["role"] == "golden"]
    dev = [row["text"] for row in recording if row["role"] == "dev"]
    seeds = [row for row in recording if row["role"] == "seed"]
    human = [
        (" ".join(r["text"].split()), banking77.name_intent(r["label"]))
        for r in _read_lines(folder / "examples-frontier.jsonl")
    ]
    examples = len(human)
    used = {text for text, _ in human} | {row["text"] for row in recording}
    others = [(t, banking77.name_intent(c)) for t, c in banking77.read_rows(folder / "train.csv") if t not in used]
    human += random.Random(0).sample(others, 300 - len(human))
    names = sorted(banking77.name_intent(name) for name in json.loads((folder / "categories.json").read_text()))
    return Source(
        "banking77",
        TaskSettings("Message"),
        _leave_out((_make_row("seed", n, r["text"], r["label"], r["probs"]) for n, r in enumerate(seeds)), golden, dev),
        golden,
        sum(row["label"] == row["intent"] for row in recording if row["role"] == "golden") / len(golden),
        banking77.STUDENTS,
        [LabelSpec(name=name, description=name) for name in names],
        _leave_out((_make_row("human", n, *one) for n, one in enumerate(human)), golden, dev),
        examples,
    )


def read_support_triage(_: Path) -> Source:
    """The bundled tickets: 1,400 with a frontier teacher's probabilities, 108 human labels, 252 golden.

    Of human labels there are 36 examples and 72 more: fewer than 300, since dev chose the settings.
    """
    task = yaml.safe_load((TICKETS / "task.yaml").read_text())
    golden, dev, examples, more = (
        [(row["text"], row["label"]) for row in _read_lines(TICKETS / f"{name}.jsonl")]
        for name in ("golden", "dev", "examples", "human")
    )
    recorded = {row["text"]: row for row in _read_lines(TICKETS / "recorded" / "frontier.jsonl")}
    held = {text for text, _ in [*golden, *dev]}
    taught = [row for text, row in recorded.items() if text not in held]
    answers = [recorded[text]["label"] == label for text, label in golden]
    return Source(
        "support_triage",
        TaskSettings("Ticket"),
        _leave_out(
            (_make_row("ticket", n, r["text"], r["label"], r["probs"]) for n, r in enumerate(taught)),
            golden,
            [text for text, _ in dev],
        ),
        golden,
        sum(answers) / len(answers),
        task["students"],
        [LabelSpec.model_validate(label) for label in task["labels"]],
        [_make_row("human", n, *one) for n, one in enumerate([*examples, *more])],
        len(examples),
    )


def read_commonsenseqa(data: Path) -> Source:
    """CommonsenseQA with PaLM's reasoning. A row is agreed on if Llama-3-8B gave the same choice."""
    folder = data / "commonsenseqa"
    questions = preference.read_questions(folder)
    reasons = preference.read_completions(folder / "completions-palm.jsonl")
    random.Random(0).shuffle(questions)
    held, rest = questions[:CQA_HELD_OUT], [one for one in questions[CQA_HELD_OUT:] if one["strong"]]
    return Source(
        "commonsenseqa",
        TaskSettings("Question"),
        _leave_out(
            (
                _make_written_row(
                    one["id"], one["text"], one["strong"], reasons[one["id"]].split("So the answer is")[0]
                )
                for one in rest
            ),
            [(one["text"], "") for one in held],
            [],
        ),
        [(one["text"], one["answer"]) for one in held],
        sum(one["strong"] == one["answer"] for one in held) / len(held),
        _build_writers(epochs=3),
        agreed={one["id"] for one in rest if one["strong"] == one["weak"]},
        is_right=lambda found, reference: normalize_text(found) == normalize_text(reference),
    )


def read_svamp(data: Path) -> Source:
    """SVAMP with PaLM's reasoning: the answer is an expression, right if it has the value of the reference.

    There is one recorded answer per problem. A row counts as agreed on if the reasoning names the expression's value.
    """
    folder, found = data / "svamp", {}
    for part in ("train", "test"):
        told = preference.read_completions(folder / f"completions-palm-{part}.jsonl")
        found[part] = [row | _read_expression(told[row["id"]]) for row in _read_lines(folder / f"{part}.jsonl")]
    rows = [row for row in found["train"] if row["found"]]
    right = [are_equal_values(row["found"], row["equation"]) for row in found["test"]]
    return Source(
        "svamp",
        TaskSettings("Problem"),
        [_make_written_row(row["id"], row["question"], row["found"], row["why"]) for row in rows],
        [(row["question"], row["equation"]) for row in found["test"]],
        sum(right) / len(right),
        _build_writers(epochs=10),
        agreed={row["id"] for row in rows if _names_value(row["why"], row["found"])},
        is_right=are_equal_values,
    )


def _build_writers(epochs: int) -> dict[str, dict[str, Any]]:
    """The student of written answers. With all layers it learns more slowly, for at most so many epochs."""
    changes = {"lora": {"rank": 16, "alpha": 32}, "learning_rate": 5.0e-4, "epochs": epochs}
    return {"smollm2": preference.WRITER, "smollm2, all layers": preference.WRITER | changes}


def are_equal_values(found: str, reference: str) -> bool:
    """Whether two expressions have the same value. What is no expression equals nothing."""
    try:
        return evaluate_expression(found) == evaluate_expression(reference)
    except NotANumberError:
        return False


def _read_expression(completion: str) -> dict[str, str]:
    why, _, rest = completion.partition("The answer is")
    match = re.match(r"\s*\((.*)\)\.?\s*$", rest.strip().splitlines()[0]) if rest.strip() else None
    return {"why": why.strip(), "found": match[1] if match else ""}


def _names_value(reasoning: str, expression: str) -> bool:
    numbers = re.findall(r"\d+(?:\.\d+)?", reasoning.replace(",", ""))
    return any(are_equal_values(number, expression) for number in numbers)


def _make_row(group: str, number: int, text: str, label: str, probs: dict[str, float] | None = None) -> TrainRow:
    return TrainRow(f"{group}-{number:04}", StudentPrompt.from_text(text), label, probs or {}, target=label)


def _make_written_row(key: str, text: str, answer: str, reasoning: str) -> TrainRow:
    return TrainRow(key, StudentPrompt.from_text(text), answer, target=answer, reasoning=reasoning.strip() or None)


def add_reasoning(row: TrainRow) -> str:
    """The target of a student that writes the teacher's reasoning before its answer."""
    return format_with_reasoning(row.reasoning, row.target or row.answer_label)


def _leave_out(rows: Iterable[TrainRow], golden: list[tuple[str, str]], dev: list[str]) -> list[TrainRow]:
    """The rows whose text is not held out, each text once. Letters' case and punctuation do not count."""
    seen = {normalize_text(text) for text in [*(text for text, _ in golden), *dev]}
    kept = []
    for row in rows:
        text = normalize_text(row.prompt.text)
        if text not in seen:
            kept.append(row)
        seen.add(text)
    return kept


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
