"""Answers of people as candidates. They pass the same filters as the teacher's."""

from __future__ import annotations

import polars as pl

from distill_dagster.prompts.seeds import build_messages, compute_prompt_id
from distill_dagster.tables.schemas import SCORED, build_frame
from distill_dagster.tasks import LabelledRow

HUMAN_SLICE = "(human)"
"""The slice of a row without one. It cannot be the key of a slice."""


def build_human_candidates(rows: list[LabelledRow], answer_kind: str = "label") -> pl.DataFrame:
    """One scored row per answer of a person, with agreement and confidence 1 and no teacher or soft labels.

    Of equal texts, curation prefers the answer of a person to the teacher's.
    """
    out: list[dict[str, object]] = []
    for row in rows:
        messages = build_messages(row)
        empty: dict[str, object] = dict.fromkeys(SCORED)
        out.append(
            empty
            | {
                "prompt_id": compute_prompt_id(messages),
                "slice": row.slice or HUMAN_SLICE,
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
    return build_frame(out, SCORED, ("prompt_id",))
