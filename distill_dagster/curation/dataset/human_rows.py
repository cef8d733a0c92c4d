"""Human answers as candidates: they pass the same filters and stand beside the teacher's."""

from __future__ import annotations

import polars as pl

from distill_dagster.prompts.seeds import build_messages, compute_prompt_id
from distill_dagster.tables.schemas import SCORED, build_frame
from distill_dagster.tasks import LabelledRow

HUMAN_SLICE = "(human)"
"""What stands for the slice of a row that has none; it cannot be the key of one."""


def build_human_candidates(rows: list[LabelledRow], answer_kind: str = "label") -> pl.DataFrame:
    """One scored row per human answer: agreement and confidence are 1, teacher and soft labels are empty.

    Of equal texts curation keeps the surest candidate, so a human answer wins over the teacher's.
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
