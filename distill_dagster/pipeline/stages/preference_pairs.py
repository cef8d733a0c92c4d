"""The stage `preference_pairs`: for each training row, the answers that lost against its own."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from distill_dagster.core.checks import CheckResult
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dataset.preference_pairs import build_preference_pairs, can_lose
from distill_dagster.kinds import format_with_reasoning, get_kind
from distill_dagster.pipeline.dataset_drift import format_plain_answer
from distill_dagster.pipeline.stage_table import SOURCES
from distill_dagster.pipeline.stages.context import (
    DisplayValue,
    SampleTable,
    StageContext,
    StageInputs,
    StageResult,
    sample_rows,
)
from distill_dagster.student.types import PhaseLog, PreferencePair, StudentPrompt, TrainRow
from distill_dagster.tables.schemas import COMPLETIONS, DATASET, PREFERENCE_PAIRS
from distill_dagster.tables.validation import check_table


def make_preference_pairs(env: StageContext, partition: str | None) -> StageResult:
    """Pair each training row with the answers of other samples and teachers that lost against its own.

    Reads: filtered_dataset, teacher_completions of all slices.
    Writes: PREFERENCE_PAIRS.
    Asks a teacher: no.
    Re-runs when: the dataset or the completions of a slice change.
    """
    inputs = StageInputs(env, "preference_pairs", partition)
    dataset = inputs.read_table("filtered_dataset", DATASET)
    for source in inputs.upstream:
        if source in SOURCES:
            inputs.note_source(source)
    task = env.folder.task
    with (env.limits or ResourceLimits()).make_folder() as temporary:
        keys = env.folder.list_slice_keys()
        scanned = [inputs.scan_last_good("teacher_completions", COMPLETIONS, key, temporary) for key in keys]
        pairs = build_preference_pairs(task, dataset, [found[0] for found in scanned if found is not None])
    checks = [check_table("preference_pairs", pairs), check_has_pairs(pairs, can_lose(task))]
    record = inputs.write_table(pairs, checks)
    by_teacher = pairs.group_by("teacher", "rejected_teacher").len("pairs").sort("teacher", "rejected_teacher")
    shown: dict[str, DisplayValue] = {
        "pairs": pairs.height,
        "prompts": pairs["prompt_id"].n_unique(),
        "training_rows": dataset.filter(pl.col("split") == "train").height,
        "of_teachers": ", ".join(f"{kept} over {lost}: {n}" for kept, lost, n in by_teacher.iter_rows()) or "none",
        "sample": sample_rows(pairs, ["answer", "rejected_answer", "samples", "rejected_teacher"]),
    }
    return StageResult(record, shown, checks)


def check_has_pairs(pairs: pl.DataFrame, can_lose: bool) -> CheckResult:
    """Warn if no answer lost against a kept one: then a preference phase has nothing to learn from."""
    why = ""
    if not can_lose:
        why = "free texts differ without one being worse: set `judge` with `mode: best_of`"
    elif not pairs.height:
        why = "all samples agree: ask for several with `teacher.samples`, or add a second teacher to `teachers`"
    return CheckResult("has_pairs", pairs.height > 0, "warning", {"pairs": pairs.height, "why": why})


def read_preference_pairs(inputs: StageInputs, rows: list[TrainRow]) -> list[PreferencePair]:
    """The pairs of a student's training rows; none for a student without a preference phase."""
    assert inputs.partition is not None
    task = inputs.env.folder.task
    if not task.students[inputs.partition].has_preference_phase:
        return []
    pairs = inputs.read_table("preference_pairs", PREFERENCE_PAIRS)
    kind, reasons = get_kind(task), task.writes_reasoning(inputs.partition)

    def build_row(pair: dict[str, Any], prefix: str) -> TrainRow:
        answer, reasoning = pair[f"{prefix}answer"], pair[f"{prefix}reasoning"] if reasons else None
        return TrainRow(
            pair["prompt_id"],
            StudentPrompt.from_messages(pair["messages"]),
            format_plain_answer(answer),
            target=format_with_reasoning(reasoning, kind.format_answer(json.loads(answer))),
        )

    learned = {row.prompt_id for row in rows}
    return [
        PreferencePair(build_row(pair, ""), build_row(pair, "rejected_"))
        for pair in pairs.iter_rows(named=True)
        if pair["prompt_id"] in learned
    ]


def tabulate_phases(logs: list[PhaseLog]) -> SampleTable:
    """What each phase of a training learned from, and the student's loss on validation before and after it."""
    return SampleTable(
        [
            {
                "phase": log.kind,
                "rows": log.rows,
                "left_out": log.left_out,
                "steps": log.steps,
                "seconds": round(log.seconds, 1),
                "first_loss": log.losses[0][1] if log.losses else None,
                "last_loss": log.losses[-1][1] if log.losses else None,
                "validation_before": log.before.get("loss"),
                "validation_after": log.after.get("loss"),
            }
            for log in logs
        ]
    )
