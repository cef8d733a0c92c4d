"""The pool of few-shot examples, and the draws from it that every request to a teacher shares."""

from __future__ import annotations

import random
from dataclasses import dataclass

import polars as pl

from distill_dagster.config import FewShotSpec, Task
from distill_dagster.core.text import normalize_text
from distill_dagster.prompts.seeds import build_messages
from distill_dagster.tables.messages import Message
from distill_dagster.tables.schemas import PROMPT_CONTEXT, build_frame
from distill_dagster.tasks import LabelledRow


@dataclass(frozen=True)
class FewShotExample:
    """A prompt with a person's answer: a `label`, or an `answer` in canonical JSON if answers are written."""

    id: str
    text: str
    label: str = ""
    answer: str | None = None
    reasoning: str | None = None
    messages: tuple[Message, ...] = ()
    """The turns of a conversation; empty if the prompt is one text."""


def get_draw_labels(task: Task) -> list[str]:
    """The labels that draws are balanced over. A kind without labels has one group of all examples."""
    return task.label_names or [""]


def build_prompt_context(
    examples: list[LabelledRow], held_out: set[str], leaking: frozenset[str] = frozenset()
) -> pl.DataFrame:
    """The table `prompt_context`: the pool of few-shot examples, sorted by id.

    A row that must not be used stays in the table, with the reason in `removed`. The reason is `contaminated` if its
    text equals that of a golden or dev row, or if its id is in `leaking`. It is `duplicate` if its text equals that of
    an earlier example.

    Args:
        held_out: normalized texts of golden and dev rows.
        leaking: ids of examples that are near-duplicates of golden or dev rows.
    """
    seen: set[str] = set()
    rows: list[dict[str, object]] = []
    for row in sorted(examples, key=lambda row: row.id):
        key = normalize_text(row.text)
        is_leak = key in held_out or row.id in leaking
        removed = "contaminated" if is_leak else "duplicate" if key in seen else None
        seen.add(key)
        rows.append(
            {
                "id": row.id,
                "text": row.text.strip(),
                "label": row.label or "",
                "removed": removed,
                "answer": row.answer_json,
                "reasoning": row.reasoning,
                "messages": build_messages(row) if row.messages else None,
            }
        )
    return build_frame(rows, PROMPT_CONTEXT, ("id",))


def read_example_pool(context: pl.DataFrame) -> list[FewShotExample]:
    """The examples of a table `prompt_context` that may be used."""
    kept = context.filter(pl.col("removed").is_null())
    return [
        FewShotExample(
            row["id"],
            row["text"],
            row["label"],
            row.get("answer"),
            row.get("reasoning"),
            tuple(row.get("messages") or ()),
        )
        for row in kept.iter_rows(named=True)
    ]


def build_draws(examples: list[FewShotExample], labels: list[str], few_shot: FewShotSpec) -> list[list[FewShotExample]]:
    """The few-shot examples of each draw, in prompt order.

    The examples of each label are shuffled once. Draw i takes the next `per_label` of them, from the start again when
    they run out, but no example twice. Then the whole draw is shuffled. So draws share no example while the pool
    lasts, and averaging over draws reduces the effect of the choice and order of examples.
    """
    order = random.Random(few_shot.seed)
    by_label: dict[str, list[FewShotExample]] = {}
    for label in labels:
        shuffled = sorted((example for example in examples if example.label == label), key=lambda example: example.id)
        order.shuffle(shuffled)
        by_label[label] = shuffled
    draws: list[list[FewShotExample]] = []
    for draw in range(few_shot.draws):
        start = draw * few_shot.per_label
        picked = [
            shuffled[(start + k) % len(shuffled)]
            for shuffled in by_label.values()
            for k in range(min(few_shot.per_label, len(shuffled)))
        ]
        order.shuffle(picked)
        draws.append(picked)
    return draws


def choose_calibration_examples(
    examples: list[FewShotExample], draw: list[FewShotExample], labels: list[str], per_label: int
) -> list[FewShotExample]:
    """Up to `per_label` examples of each label that are not in a draw: balanced inputs for calibrating the draw."""
    used = {example.id for example in draw}
    unused = [example for example in sorted(examples, key=lambda example: example.id) if example.id not in used]
    by_label = [[example for example in unused if example.label == label] for label in labels]
    return [example for group in by_label for example in group[:per_label]]
