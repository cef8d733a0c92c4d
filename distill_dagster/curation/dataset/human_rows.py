"""Human answers as candidates: they pass the same filters and stand beside the teacher's."""

from __future__ import annotations

import polars as pl

from distill_dagster.prompts.seeds import prompt_id, turns_of
from distill_dagster.tables.schemas import SCORED, frame_of
from distill_dagster.tasks import Row

SLICE = "(human)"
"""What stands for the slice of a row that has none; it cannot be the key of one."""


def human_candidates(rows: list[Row], answer_kind: str = "label") -> pl.DataFrame:
    """One scored row per human answer: agreement and confidence are 1, teacher and soft labels are empty.

    Of equal texts curation keeps the surest candidate, so a human answer wins over the teacher's.
    """
    out: list[dict[str, object]] = []
    for row in rows:
        messages = turns_of(row)
        empty: dict[str, object] = dict.fromkeys(SCORED)
        out.append(
            empty
            | {
                "prompt_id": prompt_id(messages),
                "slice": row.slice or SLICE,
                "origin": "human",
                "messages": messages,
                "reference": row.label if row.answer is None else row.answer_json,
                "status": "ok",
                "answer": row.answer_json,
                "reasoning": row.reasoning,
                "answer_kind": answer_kind,
                "completion_ids": [],
                "agreement": 1.0,
                "confidence": 1.0,
                "words": len(row.text.split()),
            }
        )
    return frame_of(out, SCORED, ("prompt_id",))
