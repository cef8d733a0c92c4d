"""Thresholds, duplicates, decontamination and split: one DuckDB query over the candidates of all slices."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import duckdb
import polars as pl

from distill_dagster.hashing import canonical_json, content_hash
from distill_dagster.spec import CurationSpec
from distill_dagster.tables import DATASET, REJECTED, conform, normalized_expr, user_text_expr

DROP_REASONS = (
    "no_answer",
    "invalid_answer",
    "invalid_label",
    "too_short",
    "too_long",
    "low_agreement",
    "low_confidence",
    "teachers_disagree",
    "low_judge",
    "other_label",
    "contaminated",
    "duplicate",
)
"""In the order of application: a row that several rules would drop names the first of them."""

_QUERY = """
WITH judged AS (
    SELECT *, CASE
        WHEN status IS DISTINCT FROM 'ok' THEN 'no_answer'
        WHEN answer IS NULL AND answer_kind <> 'label' THEN 'invalid_answer'
        WHEN answer_kind = 'label' AND (answer IS NULL OR NOT list_contains($labels, answer)) THEN 'invalid_label'
        WHEN words < $min_words THEN 'too_short'
        WHEN words > $max_words THEN 'too_long'
        WHEN coalesce(agreement, 0) < $min_agreement THEN 'low_agreement'
        WHEN coalesce(confidence, 0) < $min_confidence THEN 'low_confidence'
        WHEN coalesce(teacher_agreement, 1) < $min_teacher_agreement THEN 'teachers_disagree'
        WHEN teacher IS NOT NULL AND $min_judge > 0 AND coalesce(judge_score, 0) < $min_judge THEN 'low_judge'
        WHEN $drop_other AND target_label IS NOT NULL AND answer <> target_answer THEN 'other_label'
        WHEN text_key IN (SELECT text_key FROM held_out) THEN 'contaminated'
    END AS reason
    FROM candidates
), ranked AS (
    -- The representative of equal texts: a human's prompt before one of a log and that before an imagined one, a
    -- human's answer before a teacher's (which may be as sure), then the surest, then by id.
    SELECT *, row_number() OVER same AS place, first_value(prompt_id) OVER same AS kept_id
    FROM judged
    WINDOW same AS (
        PARTITION BY text_key, reason IS NULL
        ORDER BY origin <> 'human', origin <> 'log', teacher IS NOT NULL, confidence DESC, prompt_id, slice, answer
    )
)
SELECT * EXCLUDE (reason, place, kept_id),
    CASE WHEN reason IS NULL AND place > 1 THEN 'duplicate' ELSE reason END AS drop_reason,
    CASE
        WHEN reason IS NULL AND place > 1 THEN 'same text as ' || kept_id
        WHEN reason = 'no_answer' THEN coalesce(error, status)
        WHEN reason = 'invalid_answer' THEN error
        WHEN reason = 'invalid_label' THEN coalesce(answer, error)
        WHEN reason IN ('too_short', 'too_long') THEN words || ' words'
        WHEN reason = 'low_agreement' THEN 'agreement ' || round(agreement, 3)
        WHEN reason = 'low_confidence' THEN 'confidence ' || round(confidence, 3)
        WHEN reason = 'teachers_disagree' THEN 'agreement of teachers ' || round(teacher_agreement, 3)
        WHEN reason = 'low_judge' THEN coalesce('judge score ' || round(judge_score, 3), 'not judged')
        WHEN reason = 'other_label' THEN 'meant as ' || target_label || ', answered ' || answer
        WHEN reason = 'contaminated' THEN 'same text as a golden or dev row'
    END AS drop_detail
FROM ranked
"""


@dataclass(frozen=True)
class Curated:
    """The dataset and what was left out of it: candidates in = rows kept + rows rejected."""

    dataset: pl.DataFrame
    rejected: pl.DataFrame

    def reasons(self) -> dict[str, int]:
        counts = dict(self.rejected.group_by("drop_reason").len().iter_rows())
        return {reason: counts.get(reason, 0) for reason in DROP_REASONS}


def curate(
    candidates: pl.DataFrame,
    held_out: set[str],
    labels: list[str],
    spec: CurationSpec,
    target: Callable[[str, str | None], str] = lambda answer, _: str(json.loads(answer)),
) -> Curated:
    """Cut a dataset from scored candidates.

    Args:
        candidates: scored rows of all slices (schema SCORED).
        held_out: normalized texts of golden and dev rows; equal candidates are dropped as `contaminated`.
        labels: the task's labels; none for a kind without.
        spec: thresholds, weight of human answers, validation share and seed.
        target: the words of the target turn, from an answer and its reasoning; by default a label is its own.
    """

    targets = candidates["target_label"].to_list()
    meant = pl.Series("target_answer", [None if t is None else canonical_json(t) for t in targets], dtype=pl.String)
    source = candidates.with_columns(normalized_expr(user_text_expr()).alias("text_key"), meant)
    filters = spec.filters
    with duckdb.connect() as connection:
        connection.register("candidates", source.to_arrow())
        connection.register(
            "held_out", pl.DataFrame({"text_key": sorted(held_out)}, {"text_key": pl.String}).to_arrow()
        )
        parameters = {
            "labels": [canonical_json(label) for label in labels],
            "min_words": filters.min_words,
            "max_words": filters.max_words,
            "min_agreement": filters.min_agreement,
            "min_confidence": filters.min_confidence,
            "min_judge": filters.min_judge,
            "min_teacher_agreement": filters.min_teacher_agreement,
            "drop_other": filters.target_label == "drop_disagreement",
        }
        judged = pl.DataFrame(connection.sql(_QUERY, params=parameters).to_arrow_table())
    judged = judged.drop("target_answer")
    rejected = judged.filter(pl.col("drop_reason").is_not_null()).drop("text_key")
    kept = judged.filter(pl.col("drop_reason").is_null())
    dataset = kept.with_columns(
        pl.when(pl.col("teacher").is_null()).then(spec.human_weight).otherwise(1.0).alias("weight"),
        _split(kept, spec).alias("split"),
        _with_answer(kept, target),
    )
    return Curated(
        conform(dataset.select(list(DATASET)), DATASET, ("prompt_id", "slice")),
        conform(rejected, REJECTED, ("prompt_id", "slice", "answer", "drop_reason")),
    )


def _with_answer(kept: pl.DataFrame, target: Callable[[str, str | None], str]) -> pl.Expr:
    """The prompt's messages with the target turn."""
    null = pl.lit(None, dtype=pl.String)
    words = [target(answer, reasoning) for answer, reasoning in kept.select("answer", "reasoning").iter_rows()]
    content = pl.lit(pl.Series(words, dtype=pl.String))
    turn = pl.struct(
        pl.lit("assistant").alias("role"),
        content.alias("content"),
        null.alias("tool_calls"),
        null.alias("tool_call_id"),
        null.alias("name"),
    )
    return pl.concat_list("messages", turn).alias("messages")


def _split(kept: pl.DataFrame, spec: CurationSpec) -> pl.Series:
    """train or validation by a hash of the text: a row keeps its side whatever else comes or goes."""
    limit = int(spec.validation_share * 16**8)
    sides = [
        # Validation tells how well the student follows the teacher: rows that people answered are all for training.
        "validation" if teacher and int(content_hash([spec.seed, key])[:8], 16) < limit else "train"
        for key, teacher in kept.select("text_key", "teacher").iter_rows()
    ]
    return pl.Series("split", sides, dtype=pl.String)
