"""Seed prompts of a slice, and labelled rows, as prompts tables."""

from __future__ import annotations

from typing import Any

import polars as pl

from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.kinds import WANTED_REFUSAL
from distill_dagster.tables.messages import make_user_message
from distill_dagster.tables.schemas import PROMPTS, build_frame
from distill_dagster.tasks import LabelledRow, Seed, Slice


def build_messages(prompt: LabelledRow | Seed) -> list[dict[str, str | None]]:
    """The messages of a prompt: its conversation, or its text as the user's only turn."""
    if not prompt.messages:
        return make_user_message(prompt.text.strip())
    empty = dict.fromkeys(("tool_calls", "tool_call_id", "name"))
    return [{"role": t.role, "content": t.content.strip(), **empty} for t in prompt.messages]


def compute_prompt_id(messages: list[dict[str, str | None]], tools: str | None = None) -> str:
    """32 hex digits: a hash of messages and tools only, so that the same prompt is the same wherever it stands."""
    return hash_content({"messages": messages, "tools": tools})[:32]


def build_seed_prompts(key: str, slice_: Slice, answers: bool = False) -> pl.DataFrame:
    """The prompts of one slice, sorted by id. A text that stands twice in the slice is one prompt.

    `answers`: the task's answers are JSON values and no labels; in a slice with `refusal: wanted` every reference is
    one (`kinds.WANTED_REFUSAL`).

    `origin` is human for the user's own seeds, log for what came through the inbox (`source` is then its file), and
    synthetic for what the teacher imagined (`source` is then that teacher).
    """
    rows: dict[str, dict[str, Any]] = {}
    wanted = WANTED_REFUSAL if slice_.refusal else None
    # Sorted by content, as in `Slice.content_version`: the order in the file must not decide which repeat is kept.
    for seed in sorted(slice_.seeds, key=lambda s: hash_content(s.said())):
        row = _build_row(key, build_messages(seed), "human", seed.source)
        axes = to_canonical_json(seed.axes) if seed.axes else None
        # A label stands as it is, any other answer as canonical JSON.
        label = seed.reference is None or (isinstance(seed.reference, str) and not answers)
        reference = seed.reference if label else to_canonical_json(seed.reference)
        row |= {"target_label": seed.target_label, "reference": wanted or reference, "axes": axes}
        rows.setdefault(row["prompt_id"], row)
    for accepted in slice_.accepted:
        row = _build_row(key, make_user_message(accepted.text.strip()), "log", accepted.source) | {"reference": wanted}
        rows.setdefault(row["prompt_id"], row)
    for imagined in slice_.imagination.prompts:
        row = _build_row(key, make_user_message(imagined.text.strip()), "synthetic", imagined.teacher)
        row |= {"target_label": imagined.target_label, "parent_prompt_id": imagined.parent_prompt_id}
        row |= {"axes": to_canonical_json({"method": imagined.method} | imagined.axes), "reference": wanted}
        rows.setdefault(row["prompt_id"], row)
    return build_frame(list(rows.values()), PROMPTS, ("prompt_id",))


def _build_row(key: str, messages: list[dict[str, str | None]], origin: str, source: str | None) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(PROMPTS)
    named = {"prompt_id": compute_prompt_id(messages), "slice": key, "origin": origin, "source": source}
    return empty | named | {"messages": messages}


def build_labelled_prompts(rows: list[LabelledRow], source: str) -> pl.DataFrame:
    """Golden or dev rows as prompts: `source` is golden or dev, `parent_prompt_id` is empty, `reference` the label."""
    out: dict[str, dict[str, Any]] = {}
    for row in rows:
        messages = build_messages(row)
        id_ = compute_prompt_id(messages)
        out.setdefault(
            id_,
            {
                "prompt_id": id_,
                "slice": row.slice or source,
                "origin": "human",
                "messages": messages,
                "tools": None,
                "target_label": None,
                "reference": row.label if row.answer is None else row.answer_json,
                "axes": to_canonical_json(row.axes) if row.axes else None,
                "parent_prompt_id": None,
                "source": source,
            },
        )
    return build_frame(list(out.values()), PROMPTS, ("prompt_id",))
