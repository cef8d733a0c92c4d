"""Schemas of the tables that stages write, checked when a table is written and when it is read.

Rows are sorted by id before they are written. So equal content gives equal files and data versions, for any order and
number of processes.
"""

from __future__ import annotations

from typing import Any

import polars as pl

from distill_dagster.core.errors import DistillError


def _make_schema(columns: dict[str, Any]) -> pl.Schema:
    """A schema from data types and their classes, a mixture that mypy accepts only as `Any`."""
    return pl.Schema(columns)


MESSAGES = pl.List(
    pl.Struct(
        {
            "role": pl.String,
            "content": pl.String,
            "tool_calls": pl.String,
            "tool_call_id": pl.String,
            "name": pl.String,
        }
    )
)
"""The turns of a prompt; `messages.Message` is one of them in Python."""
SOFT_LABELS = pl.List(pl.Struct({"label": pl.String, "prob": pl.Float64}))
"""A distribution over answers."""
ID_LIST = pl.List(pl.String)

PROMPTS = _make_schema(
    {
        "prompt_id": pl.String,
        "slice": pl.String,
        "origin": pl.String,
        "messages": MESSAGES,
        "tools": pl.String,
        "target_label": pl.String,
        "reference": pl.String,
        "axes": pl.String,
        "parent_prompt_id": pl.String,
        "source": pl.String,
    }
)
"""One row per prompt. `tools` is for prompts with tools of their own, and part of their identity. A task of
kind tool_call has its tools in task.yaml. They are the same for every prompt, so no row repeats them."""
COMPLETIONS = _make_schema(
    {
        "completion_id": pl.String,
        "prompt_id": pl.String,
        "slice": pl.String,
        "teacher": pl.String,
        "sample_index": pl.Int64,
        "status": pl.String,
        "error": pl.String,
        "reasoning": pl.String,
        "answer": pl.String,
        "answer_kind": pl.String,
        "raw_text": pl.String,
        "finish_reason": pl.String,
        "soft_labels": SOFT_LABELS,
        "prompt_tokens": pl.Int64,
        "completion_tokens": pl.Int64,
        "cost_usd": pl.Float64,
        "latency_s": pl.Float64,
        "in_flight": pl.Int64,
        "model_reported": pl.String,
        "params": pl.String,
        "mode": pl.String,
        "template_version": pl.String,
        "request_key": pl.String,
        "requested_at": pl.String,
    }
)
"""One row per prompt, teacher and sample. `answer` is canonical JSON; `cost_usd` is null if the price is unknown."""
SCORES = pl.Struct(
    {
        "reasoning_words": pl.Int64,
        "answer_words": pl.Int64,
        "finish_reason": pl.String,
        "completion_tokens": pl.Int64,
        "refusal": pl.String,
        "boilerplate": pl.String,
        "echo": pl.Float64,
        "prompt_language": pl.String,
        "prompt_language_share": pl.Float64,
        "answer_language": pl.String,
        "answer_language_share": pl.Float64,
        "prose_words": pl.Int64,
        "duplicate_lines": pl.Float64,
        "duplicate_line_chars": pl.Float64,
        "duplicate_paragraphs": pl.Float64,
        "duplicate_paragraph_chars": pl.Float64,
        **{f"top_{n}_gram": pl.Float64 for n in (2, 3, 4)},
        **{f"duplicate_{n}_grams": pl.Float64 for n in (5, 6, 7, 8, 9, 10)},
        "mean_word_length": pl.Float64,
        "hashes": pl.Float64,
        "ellipses": pl.Float64,
        "bullet_lines": pl.Float64,
        "ellipsis_lines": pl.Float64,
        "alphabetic_words": pl.Float64,
        "stop_words": pl.Int64,
        "answer_first": pl.Boolean,
        "conclusion": pl.String,
        "sums": pl.Int64,
        "wrong_sums": pl.Int64,
        "wrong_sum": pl.String,
        "gold": pl.Float64,
        "secrets": pl.Int64,
        "pii": pl.String,
        "toxicity": pl.Float64,
        "injection": pl.Float64,
    }
)
"""Scores of a candidate's texts. Only those that a filter of the task reads are computed; the others are null."""
SCORED = _make_schema(
    {
        "prompt_id": pl.String,
        "slice": pl.String,
        "origin": pl.String,
        "messages": MESSAGES,
        "target_label": pl.String,
        "reference": pl.String,
        "teacher": pl.String,
        "status": pl.String,
        "error": pl.String,
        "answer": pl.String,
        "answer_kind": pl.String,
        "reasoning": pl.String,
        "soft_labels": SOFT_LABELS,
        "completion_ids": ID_LIST,
        "agreement": pl.Float64,
        "confidence": pl.Float64,
        "words": pl.Int64,
        "teacher_agreement": pl.Float64,
        "axes": pl.String,
        "parent_prompt_id": pl.String,
        "judge": pl.String,
        "judge_score": pl.Float64,
        "judge_scores": pl.String,
        "judge_reasons": pl.String,
        "judge_error": pl.String,
        "scores": SCORES,
    }
)
"""One row per prompt: the candidate answer over all its completions. `agreement` and `confidence` are shares."""
DATASET = _make_schema(
    {
        "prompt_id": pl.String,
        "slice": pl.String,
        "origin": pl.String,
        "messages": MESSAGES,
        "answer": pl.String,
        "reasoning": pl.String,
        "soft_labels": SOFT_LABELS,
        "weight": pl.Float64,
        "split": pl.String,
        "teacher": pl.String,
        "completion_ids": ID_LIST,
        "axes": pl.String,
        "parent_prompt_id": pl.String,
    }
)
"""One row per kept candidate. The last turn of `messages` is the answer."""
REJECTED = pl.Schema(dict(SCORED) | {"drop_reason": pl.String, "drop_detail": pl.String, "cluster_id": pl.String})
"""One row per rejected candidate. For a duplicate, `cluster_id` is the prompt that is kept instead."""
REPLAY_ROWS = pl.Schema(dict(DATASET) | {"dataset": pl.String})
"""One row per training row of an earlier dataset that can be replayed. `dataset` is the name that it was kept under."""
PREFERENCE_PAIRS = _make_schema(
    {
        "prompt_id": pl.String,
        "slice": pl.String,
        "rank": pl.Int64,
        "messages": MESSAGES,
        "answer": pl.String,
        "reasoning": pl.String,
        "teacher": pl.String,
        "rejected_answer": pl.String,
        "rejected_reasoning": pl.String,
        "rejected_teacher": pl.String,
        "rejected_completion_id": pl.String,
        "samples": pl.Int64,
    }
)
"""One row per training row and answer that lost against its own. `messages` is the prompt alone. `samples` counts the
completions that gave the rejected answer; `rank` orders the rejected answers of a prompt, 1 for the most frequent."""
PREDICTIONS = pl.Schema(
    {
        "system": pl.String,
        "item_id": pl.String,
        "split": pl.String,
        "slice": pl.String,
        "reference": pl.String,
        "answer": pl.String,
        "confidence": pl.Float64,
        "correct": pl.Boolean,
        "latency_s": pl.Float64,
        "raw_text": pl.String,
    }
)
"""One row per system and item of a split: the answer, and whether it is correct."""
JUDGED_PAIRS = pl.Schema(
    {
        "item_id": pl.String,
        "slice": pl.String,
        "first": pl.String,
        "second": pl.String,
        "shown_first": pl.String,
        "winner": pl.String,
        "decided_by": pl.String,
        "judge": pl.String,
        "reason": pl.String,
        "error": pl.String,
    }
)
"""Two rows per golden item, one for each order in which the answers of systems `first` and `second` are shown.

`decided_by` is `judge`, or without asking `equal` (the answers are equal, so there is no winner) or `missing` (a system
has no answer, so the other one wins). `error` says why the judge has no choice."""
PROMPT_CONTEXT = _make_schema(
    {
        "id": pl.String,
        "text": pl.String,
        "label": pl.String,
        "removed": pl.String,
        "answer": pl.String,
        "reasoning": pl.String,
        "messages": MESSAGES,
    }
)
"""The few-shot pool. `removed` says why an example is not used; `messages` is null if the prompt is one text."""
TEACHER_PRIOR = pl.Schema({"sample_index": pl.Int64, "label": pl.String, "prob": pl.Float64, "items": pl.Int64})
"""The teacher's mean answer to the calibration examples: a distribution over labels for each sample."""


RELEASED_EXPORTS = pl.Schema(
    {"number": pl.Int64, "export": pl.String, "path": pl.String, "bytes": pl.Int64, "parity": pl.String}
)
"""One row per export of a release. One that was left out has no path; `parity` says why."""


class SchemaError(DistillError):
    """A table does not have the declared columns and types."""


def conform_to_schema(frame: pl.DataFrame, schema: pl.Schema, sort_by: tuple[str, ...]) -> pl.DataFrame:
    """The frame with the declared columns in their order, cast to their types and sorted.

    Raises:
        SchemaError: a column is missing, unknown, or cannot be cast to its declared type.
    """
    unknown, missing = set(frame.columns) - set(schema), set(schema) - set(frame.columns)
    if unknown or missing:
        raise SchemaError(f"columns unknown: {sorted(unknown)}, missing: {sorted(missing)}")
    try:
        return frame.select([pl.col(name).cast(dtype) for name, dtype in schema.items()]).sort(sort_by)
    except pl.exceptions.PolarsError as error:
        raise SchemaError(f"a column is not of its declared type: {error}") from error


def build_frame(rows: list[dict[str, object]], schema: pl.Schema, sort_by: tuple[str, ...]) -> pl.DataFrame:
    """A table from rows as dictionaries, as `conform_to_schema` returns it.

    Raises:
        SchemaError: as for `conform_to_schema`.
    """
    return conform_to_schema(pl.DataFrame(rows, schema=schema), schema, sort_by)
