"""Seed prompts of a slice, and labelled rows, as prompts tables."""

from __future__ import annotations

from typing import Any

import polars as pl

from distill_dagster.hashing import canonical_json, content_hash
from distill_dagster.tables import PROMPTS, frame_of
from distill_dagster.taskfiles import Row, Slice, normalize


def user_message(text: str) -> list[dict[str, str | None]]:
    return [{"role": "user", "content": text, "tool_calls": None, "tool_call_id": None, "name": None}]


def prompt_id(messages: list[dict[str, str | None]], tools: str | None = None) -> str:
    """32 hex digits: a hash of messages and tools only, so that the same prompt is the same wherever it stands."""
    return content_hash({"messages": messages, "tools": tools})[:32]


def seed_prompts(key: str, slice_: Slice) -> pl.DataFrame:
    """The prompts of one slice, sorted by id. A text that stands twice in the slice is one prompt.

    `origin` is human for the user's own seeds, log for what came through the inbox (`source` is then its file), and
    synthetic for what the teacher imagined (`source` is then that teacher).
    """
    rows: dict[str, dict[str, Any]] = {}
    # Sorted by content, as in `Slice.content_version`: the order in the file must not decide which repeat is kept.
    for seed in sorted(slice_.seeds, key=lambda s: content_hash(s.model_dump(exclude={"source"}))):
        row = _prompt(key, seed.text, "human", seed.source)
        axes = canonical_json(seed.axes) if seed.axes else None
        row |= {"target_label": seed.target_label, "reference": seed.reference, "axes": axes}
        rows.setdefault(row["prompt_id"], row)
    for accepted in slice_.accepted:
        row = _prompt(key, accepted.text, "log", accepted.source)
        rows.setdefault(row["prompt_id"], row)
    for imagined in slice_.imagination.prompts:
        row = _prompt(key, imagined.text, "synthetic", imagined.teacher)
        row |= {"target_label": imagined.target_label, "parent_prompt_id": imagined.parent_prompt_id}
        row |= {"axes": canonical_json({"method": imagined.method} | imagined.axes)}
        rows.setdefault(row["prompt_id"], row)
    return frame_of(list(rows.values()), PROMPTS, ("prompt_id",))


def _prompt(key: str, text: str, origin: str, source: str | None) -> dict[str, Any]:
    messages = user_message(text.strip())
    empty: dict[str, Any] = dict.fromkeys(PROMPTS)
    named = {"prompt_id": prompt_id(messages), "slice": key, "origin": origin, "source": source}
    return empty | named | {"messages": messages}


def labelled_prompts(rows: list[Row], source: str) -> pl.DataFrame:
    """Golden or dev rows as prompts: `source` is golden or dev, `parent_prompt_id` is empty, `reference` the label."""
    out: dict[str, dict[str, Any]] = {}
    for row in rows:
        messages = user_message(row.text.strip())
        id_ = prompt_id(messages)
        out.setdefault(
            id_,
            {
                "prompt_id": id_,
                "slice": row.slice or source,
                "origin": "human",
                "messages": messages,
                "tools": None,
                "target_label": None,
                "reference": row.label,
                "axes": canonical_json(row.axes) if row.axes else None,
                "parent_prompt_id": None,
                "source": source,
            },
        )
    return frame_of(list(out.values()), PROMPTS, ("prompt_id",))


def held_out_keys(golden: list[Row], dev: list[Row]) -> set[str]:
    """Normalized texts of golden and dev: what may not stand on the training side."""
    return {normalize(row.text) for row in [*golden, *dev]}
