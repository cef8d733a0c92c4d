"""Checks of what a stage made: Great Expectations over each table, and the invariants that guard training.

The list of checks stands here; assets show them in Dagster. A blocking check that failed is also kept in the
artifact's record, so that nothing downstream reads it, from wherever it is started.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from distill_dagster.core.checks import CheckSpec
from distill_dagster.student.training_check import LOSS_FELL_CHECK
from distill_dagster.teacher.providers.terms import TERMS_CHECK, TERMS_KNOWN_CHECK

if TYPE_CHECKING:
    pass

os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")


VALID_TABLE_CHECK = CheckSpec(
    "valid_table", "Great Expectations: ids unique, nothing null that must not be, values in range.", blocking=True
)
NO_MISSING_ROWS_CHECK = CheckSpec("no_missing_rows", "Every prompt has an answer.")
STAGE_CHECKS: dict[str, tuple[CheckSpec, ...]] = {
    "prompt_context": (
        VALID_TABLE_CHECK,
        CheckSpec("no_row_removed", "No few-shot example repeats another or a golden row."),
    ),
    "seed_prompts": (VALID_TABLE_CHECK, CheckSpec("target_reached", "A slice with a target has that many prompts.")),
    "teacher_prior": (VALID_TABLE_CHECK, NO_MISSING_ROWS_CHECK),
    "golden_completions": (TERMS_CHECK, TERMS_KNOWN_CHECK, VALID_TABLE_CHECK, NO_MISSING_ROWS_CHECK),
    "teacher_gate": (
        VALID_TABLE_CHECK,
        CheckSpec(
            "teacher_good_enough",
            "On dev the teacher reaches gate.teacher_min, and the untrained student with gate.teacher_over_base.",
            blocking=True,
        ),
    ),
    "teacher_completions": (TERMS_CHECK, TERMS_KNOWN_CHECK, VALID_TABLE_CHECK, NO_MISSING_ROWS_CHECK),
    "scored_completions": (
        VALID_TABLE_CHECK,
        CheckSpec("all_judged", "Where there is a judge, every answer that it was shown has its verdict."),
    ),
    "filtered_dataset": (
        VALID_TABLE_CHECK,
        CheckSpec("nothing_lost", "Rows kept + rows rejected = candidates, each rejected row with one reason.", True),
        CheckSpec("no_contamination", "No row of the dataset is a golden or dev text, nor nearly one.", True),
        CheckSpec(
            "enough_rows",
            "At least curation.min_rows training rows, and of labels two or more.",
            True,
        ),
        CheckSpec(
            "enough_slices", "At least curation.min_slices slices give rows: today's, or their last good ones.", True
        ),
        CheckSpec("drop_rates", "No drop reason takes much more or less than in the last good dataset.", True),
        CheckSpec(
            "same_distribution", "Labels and lengths are distributed as in the last good dataset (KL divergence).", True
        ),
        CheckSpec("floors_met", "Every value with a floor (`balance.floors`) has that many rows."),
        CheckSpec("slices_current", "Every slice gives the rows of today's files."),
        CheckSpec("label_coverage", "Every label has a training row."),
    ),
    "seed_only_adapter": (LOSS_FELL_CHECK,),
    "student_adapter": (LOSS_FELL_CHECK,),
    "slice_label_adapter": (LOSS_FELL_CHECK,),
    "predictions": (
        VALID_TABLE_CHECK,
        CheckSpec("complete", "Every system answered every golden and dev item once.", blocking=True),
    ),
    "eval_report": (
        CheckSpec("metrics_table", "The metrics table has the declared columns and ranges (dagster-pandas)."),
    ),
}
