"""The checks of each stage, for Dagster and for the records.

The checks themselves are next to what they check. The record of an artifact keeps each blocking check that failed, and
no stage reads an artifact with such a record.
"""

from __future__ import annotations

from distill_dagster.core.checks import CheckSpec
from distill_dagster.release.gate import GATE_CHECKS
from distill_dagster.release.types import EXPORTS_CHECK
from distill_dagster.student.token_counts import ROWS_WHOLE_CHECK
from distill_dagster.student.training_check import LOSS_FELL_CHECK, ROWS_FIT_CHECK
from distill_dagster.teacher.providers.terms import TERMS_CHECK, TERMS_KNOWN_CHECK

VALID_TABLE_CHECK = CheckSpec(
    "valid_table",
    "Great Expectations: ids are unique, required values are not null, and values are in range.",
    blocking=True,
)
NO_MISSING_ROWS_CHECK = CheckSpec("no_missing_rows", "Every prompt has an answer.")
"""A warning: prompts without an answer are asked again."""
STAGE_CHECKS: dict[str, tuple[CheckSpec, ...]] = {
    "prompt_context": (
        VALID_TABLE_CHECK,
        CheckSpec("no_row_removed", "No few-shot example repeats another one, or a golden or dev row."),
    ),
    "seed_prompts": (
        VALID_TABLE_CHECK,
        CheckSpec("target_reached", "A slice with a `target` has at least that many prompts."),
    ),
    "teacher_prior": (VALID_TABLE_CHECK, NO_MISSING_ROWS_CHECK),
    "golden_completions": (TERMS_CHECK, TERMS_KNOWN_CHECK, VALID_TABLE_CHECK, NO_MISSING_ROWS_CHECK),
    "teacher_gate": (
        VALID_TABLE_CHECK,
        CheckSpec(
            "teacher_good_enough",
            "On dev the teacher scores at least gate.teacher_min, and at least gate.teacher_over_base above the "
            "untrained student.",
            blocking=True,
        ),
        CheckSpec(
            "soft_labels_calibrated",
            "On dev the teacher is as sure of its answers as they are right: the expected calibration error is at most "
            "0.1, or within chance, or the dataset rescales the soft labels.",
        ),
    ),
    "teacher_completions": (TERMS_CHECK, TERMS_KNOWN_CHECK, VALID_TABLE_CHECK, NO_MISSING_ROWS_CHECK),
    "judged_pairs": (
        VALID_TABLE_CHECK,
        CheckSpec("all_compared", "The judge made a choice for every pair of answers."),
    ),
    "scored_completions": (
        VALID_TABLE_CHECK,
        CheckSpec("all_judged", "In tasks with a judge, every answer that it was asked about has a score."),
    ),
    "filtered_dataset": (
        VALID_TABLE_CHECK,
        CheckSpec(
            "nothing_lost",
            "Kept and rejected rows together are all candidates, and each rejected row has one reason.",
            True,
        ),
        CheckSpec("no_contamination", "No row of the dataset equals a golden or dev text, or nearly equals one.", True),
        CheckSpec(
            "enough_rows",
            "The dataset has at least curation.min_rows training rows and, for kinds with labels, at least two labels.",
            True,
        ),
        CheckSpec("enough_slices", "At least curation.min_slices slices have rows, current or last good ones.", True),
        CheckSpec("drop_rates", "No drop reason removes many more or fewer rows than in the last good dataset.", True),
        CheckSpec(
            "same_distribution",
            "Labels and lengths have the distribution of the last good dataset (KL divergence).",
            True,
        ),
        CheckSpec("floors_met", "Every value with a minimum in `balance.floors` has that many rows."),
        CheckSpec("slices_current", "The rows of every slice are made from its current files."),
        CheckSpec("label_coverage", "Every label has a training row."),
    ),
    "preference_pairs": (
        VALID_TABLE_CHECK,
        CheckSpec("has_pairs", "An answer lost against the answer of a training row: a preference phase can learn."),
    ),
    "replay_rows": (VALID_TABLE_CHECK,),
    "seed_only_adapter": (LOSS_FELL_CHECK, ROWS_WHOLE_CHECK),
    "assistant_adapter": (LOSS_FELL_CHECK, ROWS_WHOLE_CHECK, ROWS_FIT_CHECK),
    "assistant_labels": (
        VALID_TABLE_CHECK,
        CheckSpec("all_answered", "The answer of the assistant to every prompt of the dataset can be read."),
    ),
    "student_adapter": (LOSS_FELL_CHECK, ROWS_WHOLE_CHECK, ROWS_FIT_CHECK),
    "slice_label_adapter": (LOSS_FELL_CHECK, ROWS_WHOLE_CHECK),
    "predictions": (
        VALID_TABLE_CHECK,
        CheckSpec("complete", "Every system answered every golden and dev item once.", blocking=True),
    ),
    "eval_report": (
        CheckSpec("metrics_table", "The metrics table has the declared columns and ranges (dagster-pandas)."),
    ),
    "release": (*GATE_CHECKS, EXPORTS_CHECK),
}
