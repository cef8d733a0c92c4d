"""The stage teacher_gate: whether the teacher is good enough on dev to be paid for slices."""

from __future__ import annotations

import json
from typing import Any

from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.hashing import hash_content
from distill_dagster.curation.soft_labels.reliability import Reliability
from distill_dagster.evaluation.gate import GateScores, build_gate_check, compute_gate_scores
from distill_dagster.kinds import Kind, get_kind
from distill_dagster.pipeline.stages.context import (
    DisplayValue,
    StageContext,
    StageInputs,
    StageResult,
    build_blocked_fields,
    sample_rows,
)
from distill_dagster.pipeline.stages.predictions import (
    EvaluationItem,
    build_held_out_items,
    build_prediction_row,
    predict_rows,
    read_teacher_candidates,
)
from distill_dagster.pipeline.stages.soft_labels import (
    build_calibration_check,
    build_reliability_metadata,
    measure_teacher_reliability,
)
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.schemas import PREDICTIONS, build_frame
from distill_dagster.tables.validation import check_table

PASSED_VERSION = hash_content("passed")
"""The data version of every passed gate, so that nothing downstream re-runs because its figures changed."""


def make_teacher_gate(env: StageContext, partition: str | None) -> StageResult:
    """Compare the teacher on dev with `gate.teacher_min` and with the untrained student.

    Reads: golden_completions, teacher_prior and dev.jsonl.
    Writes: PREDICTIONS, of the teacher and of the untrained student `base`.
    Asks a teacher: no, its answers are in golden_completions.
    Re-runs when: one of these, teacher_settings or gate_settings changes.
    """
    inputs = StageInputs(env, "teacher_gate", partition)
    for source in ("golden_set", "teacher_settings", "gate_settings"):
        inputs.note_source(source)
    task = env.folder.task
    gate, kind = task.gate, get_kind(task)
    candidates, _ = read_teacher_candidates(inputs)
    answered = [
        item
        for item in build_held_out_items("dev", env.folder.dev)
        # An item that was never answered says nothing about the teacher; a refusal or an unusable answer does.
        if candidates[item.prompt_id]["status"] not in (None, "failed")
    ]
    measured = _measure_reliability(kind, answered, candidates)
    items = sorted(answered, key=lambda item: hash_content(item.id))[: gate.items]
    rows = []
    for item in items:
        candidate = candidates[item.prompt_id]
        answer = json.loads(candidate["answer"]) if candidate["answer"] else None
        rows.append(build_prediction_row(kind, "teacher", item, answer, candidate["confidence"], None))
    if gate.teacher_over_base is not None and items:
        rows += _predict_with_base(env, kind, items)
    frame = build_frame(rows, PREDICTIONS, ("system", "item_id"))
    scores = compute_gate_scores(kind, frame, task.evaluation)
    wanted = min(gate.items, len(env.folder.dev))
    recorded = all(one.is_replay for one in task.teacher_specs)
    check = build_gate_check(scores, gate, answered=len(items), expected=wanted, recorded=recorded)
    is_rescaled = task.curation.rescale_soft_labels != "none"
    checks = [check_table("teacher_gate", frame), check, build_calibration_check(measured, is_rescaled=is_rescaled)]
    blocked = build_blocked_fields("teacher_gate", checks)
    version = compute_data_version(frame) if blocked else PASSED_VERSION
    extra = blocked | ({"reliability": measured.to_dict()} if measured is not None else {})
    record = inputs.build_record(version, frame.height, **extra)
    env.lake.write(env.task_name, frame, record)
    shown: dict[str, DisplayValue] = {
        "passed": not blocked,
        "items": len(items),
        **_build_gate_metadata(scores),
        **build_reliability_metadata(measured, has_plot=True),
        "sample": sample_rows(frame, ["system", "item_id", "reference", "answer", "correct"], 8),
    }
    return StageResult(record, shown, checks)


def _measure_reliability(
    kind: Kind, items: list[EvaluationItem], candidates: dict[str, dict[str, Any]]
) -> Reliability | None:
    """How well the teacher's confidences on these dev rows are calibrated."""
    rows = [candidates[item.prompt_id] for item in items]
    answers = [json.loads(row["answer"]) if row["answer"] else None for row in rows]
    pairs = zip(answers, items, strict=True)
    correct = [answer is not None and kind.are_equal(answer, item.reference) for answer, item in pairs]
    return measure_teacher_reliability(rows, correct)


def _predict_with_base(env: StageContext, kind: Kind, items: list[EvaluationItem]) -> list[dict[str, object]]:
    from distill_dagster.student.predict import load_predictor
    from distill_dagster.student.types import TaskSettings

    task = env.folder.task
    settings = TaskSettings.from_task(task)
    progress.report_progress("predicting with base", 0, 1)
    name = task.chosen_student
    try:
        base = load_predictor(task.students[name], task.labels, settings, env.models)
    except DistillError as error:
        raise DistillError(f"students.{name}, with whose base the teacher is compared: {error}") from error
    return predict_rows(kind, "base", base, items)


def _build_gate_metadata(scores: GateScores) -> dict[str, DisplayValue]:
    shown: dict[str, DisplayValue] = {"metric": scores.metric}
    for name, interval in (("teacher", scores.teacher), ("base", scores.base), ("difference", scores.difference)):
        if interval is not None and interval.value is not None:
            shown[name] = round(interval.value, 4)
            shown[f"{name}_interval"] = f"{interval.low:.3f} to {interval.high:.3f}"
    return shown


def require_passed_gate(inputs: StageInputs) -> None:
    """Refuse to ask for a slice before the teacher, with its current settings, has passed the gate.

    Raises:
        DistillError: the gate was not passed, was never made, or was passed with other settings of the teacher.
    """
    inputs.read_table("teacher_gate", PREDICTIONS)
    env = inputs.env
    record = env.lake.read_record(env.task_name, "teacher_gate")
    inputs.note_source("teacher_settings")
    if record is not None and record.inputs["teacher_settings"] != inputs.versions["teacher_settings"]:
        raise DistillError(
            f"{env.task_name}: the teacher's settings changed after it passed teacher_gate, so slices are not asked "
            f"yet. Run `distill run {env.task_name}`, or materialize golden_completions and teacher_gate first."
        )
