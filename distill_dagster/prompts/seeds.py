"""Turn the seed prompts of a slice, and labelled rows, into tables of prompts."""

from __future__ import annotations

from typing import Any

import polars as pl

from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.kinds import WANTED_REFUSAL
from distill_dagster.tables.messages import Message, make_message, make_user_messages
from distill_dagster.tables.schemas import PROMPTS, build_frame
from distill_dagster.tasks import LabelledRow, Seed, Slice
from distill_dagster.tasks.accepted import AcceptedPrompt


def build_messages(prompt: LabelledRow | Seed | AcceptedPrompt) -> list[Message]:
    """The messages of a prompt: its conversation, or its text as the user's only turn."""
    if not prompt.messages:
        return make_user_messages(prompt.text.strip())
    return [make_message(turn.role, turn.content.strip()) for turn in prompt.messages]


def compute_prompt_id(messages: list[Message], tools: str | None = None) -> str:
    """32 hex digits: a hash of messages and tools only, so that a prompt has the same id in every slice and file."""
    return hash_content({"messages": messages, "tools": tools})[:32]


def build_seed_prompts(key: str, content: Slice, answers: bool = False) -> pl.DataFrame:
    """The prompts of the slice `key`, sorted by id, in the schema `PROMPTS`. Duplicate texts become one prompt.

    `origin` is `human` for the user's own seeds, `log` for prompts from the inbox, `synthetic` for imagined prompts.
    `source` is that of the seed, the file in the inbox, or the model that imagined the prompt.

    Args:
        answers: whether the task's answers are JSON values instead of labels. In a slice with `refusal: wanted` every
            reference is `kinds.WANTED_REFUSAL`.
    """
    rows: dict[str, dict[str, Any]] = {}
    refusal = WANTED_REFUSAL if content.refusal else None
    # Sorted by content, so that the order in the file does not decide which duplicate is kept.
    for seed in sorted(content.seeds, key=lambda seed: hash_content(seed.get_hashed_fields())):
        row = _build_row(key, build_messages(seed), "human", seed.source)
        axes = to_canonical_json(seed.axes) if seed.axes else None
        # A label is stored as it is, any other answer as canonical JSON.
        is_label = seed.reference is None or (isinstance(seed.reference, str) and not answers)
        reference = seed.reference if is_label else to_canonical_json(seed.reference)
        row |= {"target_label": seed.target_label, "reference": refusal or reference, "axes": axes}
        rows.setdefault(row["prompt_id"], row)
    for accepted in content.accepted:
        row = _build_row(key, build_messages(accepted), "log", accepted.source)
        row["reference"] = refusal
        rows.setdefault(row["prompt_id"], row)
    for imagined in (*content.shipped, *content.imagination.prompts):
        row = _build_row(key, make_user_messages(imagined.text.strip()), "synthetic", imagined.teacher)
        row |= {"target_label": imagined.target_label, "parent_prompt_id": imagined.parent_prompt_id}
        row |= {"axes": to_canonical_json({"method": imagined.method} | imagined.axes), "reference": refusal}
        rows.setdefault(row["prompt_id"], row)
    return build_frame(list(rows.values()), PROMPTS, ("prompt_id",))


def _build_row(key: str, messages: list[Message], origin: str, source: str | None) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(PROMPTS)
    row |= {"prompt_id": compute_prompt_id(messages), "slice": key, "origin": origin, "source": source}
    return row | {"messages": messages}


def build_held_out_prompts(golden: list[LabelledRow], dev: list[LabelledRow]) -> pl.DataFrame:
    """Golden and dev rows as prompts, in the schema `PROMPTS`. A dev row that repeats a golden row is left out."""
    both = pl.concat([build_labelled_prompts(golden, "golden"), build_labelled_prompts(dev, "dev")])
    return both.unique("prompt_id", keep="first", maintain_order=True)


def build_labelled_prompts(rows: list[LabelledRow], source: str) -> pl.DataFrame:
    """Labelled rows as prompts, sorted by id, in the schema `PROMPTS`. Duplicate texts become one prompt.

    Args:
        source: `golden` or `dev`; also the slice of rows that have none.
    """
    prompts: dict[str, dict[str, Any]] = {}
    for row in rows:
        prompt = _build_row(row.slice or source, build_messages(row), "human", source)
        prompt["reference"] = row.label if row.answer is None else row.answer_json
        prompt["axes"] = to_canonical_json(row.axes) if row.axes else None
        prompts.setdefault(prompt["prompt_id"], prompt)
    return build_frame(list(prompts.values()), PROMPTS, ("prompt_id",))
