"""The tables between stages: schemas declared once, checked at both ends, hashed by content.

Parquet with Zstd, written to a temporary name and then renamed. Rows are sorted by id before they are written, so
the same content gives the same data version whatever the order or number of processes that made it.
"""

from __future__ import annotations

from typing import Any, TypeVar

import polars as pl

Frame = TypeVar("Frame", pl.DataFrame, pl.LazyFrame)


def _make_schema(columns: dict[str, Any]) -> pl.Schema:
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
SOFT_LABELS = pl.List(pl.Struct({"label": pl.String, "prob": pl.Float64}))
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
"""`tools` is for prompts that bring tools of their own, and part of their identity. The tools of a task of kind
tool_call are in its task.yaml, the same for every prompt, and in every request: they do not stand in each row."""
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
"""Scores that have to be computed: only those that a filter of the task reads are, the others are null."""
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
LATER_COLUMNS = (
    "teacher_agreement",
    "axes",
    "parent_prompt_id",
    "judge",
    "judge_score",
    "judge_scores",
    "judge_reasons",
    "judge_error",
    "scores",
    "cluster_id",
)
"""Columns that candidates and dataset got later. A table without them is read as one in which they are null, and they
are part of a data version only where they hold something: what was made before stays as fresh as it was."""
REJECTED = pl.Schema(dict(SCORED) | {"drop_reason": pl.String, "drop_detail": pl.String, "cluster_id": pl.String})
"""`cluster_id` is the prompt that is kept in a duplicate's place."""
PREDICTIONS = _make_schema(
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
PROMPT_CONTEXT = pl.Schema({"id": pl.String, "text": pl.String, "label": pl.String, "removed": pl.String})
ANSWERED_PROMPT_CONTEXT = pl.Schema(
    dict(PROMPT_CONTEXT) | {"answer": pl.String, "reasoning": pl.String, "messages": MESSAGES}
)
"""The few-shot pool where answers are written: by a kind without labels, or with reasoning."""
TEACHER_PRIOR = pl.Schema({"sample_index": pl.Int64, "label": pl.String, "prob": pl.Float64, "items": pl.Int64})


class SchemaError(Exception):
    """A table does not have the declared columns and types."""


def conform_to_schema(frame: pl.DataFrame, schema: pl.Schema, sort_by: tuple[str, ...]) -> pl.DataFrame:
    """The frame with exactly the declared columns, in order, sorted.

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


def add_later_columns(frame: Frame, schema: pl.Schema) -> Frame:
    """A table that was written before it had the columns of `LATER`, with them, in the order of the schema."""
    here: pl.Schema = frame.collect_schema()
    if "scores" in here and here["scores"] != SCORES:
        frame = frame.with_columns(_complete_scores_expr(here))
    absent: list[str] = [name for name in LATER_COLUMNS if name in schema and name not in here]
    if not absent or "completion_ids" not in here:
        return frame
    frame = frame.with_columns(pl.lit(None, dtype=schema[name]).alias(name) for name in absent)
    return frame.select(list(schema)) if {*here, *absent} == set(schema) else frame


def _complete_scores_expr(here: pl.Schema) -> pl.Expr:
    """The scores of a table that was written before there were all of today's."""
    names = {field.name for field in here["scores"].fields}  # type: ignore[attr-defined]
    fields = [
        (pl.col("scores").struct.field(name) if name in names else pl.lit(None, dtype=dtype)).cast(dtype).alias(name)
        for name, dtype in SCORES.to_schema().items()
    ]
    return pl.when(pl.col("scores").is_not_null()).then(pl.struct(fields)).alias("scores")


def build_frame(rows: list[dict[str, object]], schema: pl.Schema, sort_by: tuple[str, ...]) -> pl.DataFrame:
    return conform_to_schema(pl.DataFrame(rows, schema=schema), schema, sort_by)
