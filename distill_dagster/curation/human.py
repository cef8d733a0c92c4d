"""Human answers as candidates: they pass the same filters and stand beside the teacher's."""

from __future__ import annotations

import polars as pl

from distill_dagster.hashing import canonical_json
from distill_dagster.prompts.seeds import prompt_id, user_message
from distill_dagster.tables import SCORED, frame_of
from distill_dagster.taskfiles import Row

SLICE = "(human)"
"""What stands for the slice of a row that has none; it cannot be the key of one."""


def human_candidates(rows: list[Row]) -> pl.DataFrame:
    """One scored row per human answer: agreement and confidence are 1, teacher and soft labels are empty.

    Of equal texts curation keeps the surest candidate, so a human answer wins over the teacher's.
    """
    out: list[dict[str, object]] = []
    for row in rows:
        messages = user_message(row.text.strip())
        empty: dict[str, object] = dict.fromkeys(SCORED)
        out.append(
            empty
            | {
                "prompt_id": prompt_id(messages),
                "slice": row.slice or SLICE,
                "origin": "human",
                "messages": messages,
                "reference": row.label,
                "status": "ok",
                "answer": canonical_json(row.label),
                "answer_kind": "label",
                "completion_ids": [],
                "agreement": 1.0,
                "confidence": 1.0,
                "words": len(row.text.split()),
            }
        )
    return frame_of(out, SCORED, ("prompt_id",))
