"""The few-shot pool and the draws: what every teacher prompt shares."""

from __future__ import annotations

import random
from dataclasses import dataclass

import polars as pl

from distill_dagster.config import FewShotSpec, Task
from distill_dagster.prompts.seeds import build_messages
from distill_dagster.tables.schemas import ANSWERED_PROMPT_CONTEXT, PROMPT_CONTEXT, build_frame
from distill_dagster.tasks import LabelledRow, normalize_text


@dataclass(frozen=True)
class FewShotExample:
    """A prompt that a person answered: with a label, or (`answer`, canonical JSON) where answers are written."""

    id: str
    text: str
    label: str = ""
    answer: str | None = None
    reasoning: str | None = None
    messages: tuple[tuple[str, str], ...] = ()
    """The turns of a conversation as (role, content); empty where the prompt is one text."""


def get_context_schema(task: Task) -> pl.Schema:
    """The schema of the pool: answers and reasoning are kept where answers are written."""
    return ANSWERED_PROMPT_CONTEXT if task.answers_are_written else PROMPT_CONTEXT


def get_draw_labels(task: Task) -> list[str]:
    """What draws are balanced over: the labels; a kind without labels has one group, of all examples."""
    return task.label_names or [""]


def build_prompt_context(
    examples: list[LabelledRow],
    held_out: set[str],
    schema: pl.Schema = PROMPT_CONTEXT,
    leaking: frozenset[str] = frozenset(),
) -> pl.DataFrame:
    """The pool of few-shot examples.

    A row whose text equals a golden or dev row, or whose id is among the `leaking` ones (`contaminated`), or whose text
    equals an earlier example (`duplicate`) stays in the table with the reason in `removed`, and is never used. Rows
    leave the training side, never golden.
    """
    seen: set[str] = set()
    rows: list[dict[str, object]] = []
    found: dict[str, object]
    for row in sorted(examples, key=lambda r: r.id):
        key = normalize_text(row.text)
        leaks = key in held_out or row.id in leaking
        removed = "contaminated" if leaks else "duplicate" if key in seen else None
        seen.add(key)
        found = {"id": row.id, "text": row.text.strip(), "label": row.label or "", "removed": removed}
        if "answer" in schema:
            found |= {"answer": row.answer_json, "reasoning": row.reasoning}
            found["messages"] = build_messages(row) if row.messages else None
        rows.append(found)
    return build_frame(rows, schema, ("id",))


def read_example_pool(context: pl.DataFrame) -> list[FewShotExample]:
    kept = context.filter(pl.col("removed").is_null())
    return [
        FewShotExample(
            r["id"],
            r["text"],
            r["label"],
            r.get("answer"),
            r.get("reasoning"),
            tuple((turn["role"], turn["content"]) for turn in r.get("messages") or []),
        )
        for r in kept.iter_rows(named=True)
    ]


def build_draws(examples: list[FewShotExample], labels: list[str], few_shot: FewShotSpec) -> list[list[FewShotExample]]:
    """The few-shot examples of each draw, in prompt order.

    Each label's examples are shuffled once; draw i takes the next `per_label` of them (going round when they run out,
    but never one twice in a draw), and the whole draw is shuffled. So draws share no example while the pool lasts, and
    averaging over draws steadies what the choice and the order of examples shake.
    """
    order = random.Random(few_shot.seed)
    by_label: dict[str, list[FewShotExample]] = {}
    for label in labels:
        mine = sorted((e for e in examples if e.label == label), key=lambda e: e.id)
        order.shuffle(mine)
        by_label[label] = mine
    chosen: list[list[FewShotExample]] = []
    for draw in range(few_shot.draws):
        start = draw * few_shot.per_label
        picked = [
            mine[(start + k) % len(mine)]
            for mine in by_label.values()
            for k in range(min(few_shot.per_label, len(mine)))
        ]
        order.shuffle(picked)
        chosen.append(picked)
    return chosen


def choose_calibration_examples(
    examples: list[FewShotExample], draw: list[FewShotExample], labels: list[str], per_label: int
) -> list[FewShotExample]:
    """Up to `per_label` examples of each label that are not in a draw: balanced inputs for its calibration."""
    used = {e.id for e in draw}
    free = [e for e in sorted(examples, key=lambda e: e.id) if e.id not in used]
    return [e for label in labels for e in [f for f in free if f.label == label][:per_label]]
