"""The gate before slices are paid for: whether the teacher is worth asking, by dev."""

from __future__ import annotations

import json

from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.hashing import hash_content
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
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.schemas import PREDICTIONS, build_frame
from distill_dagster.tables.validation import check_table

PASSED_VERSION = hash_content("passed")
"""The data version of a gate that was passed: whatever its figures, nothing behind it has to run again."""


def make_teacher_gate(env: StageContext, partition: str | None) -> StageResult:
    """The teacher's answers to dev, and those of the untrained student where the two are compared."""
    inputs = StageInputs(env, "teacher_gate", partition)
    for source in ("golden_set", "teacher_settings", "gate_settings"):
        inputs.note_source(source)
    task = env.folder.task
    gate, kind = task.gate, get_kind(task)
    candidates, _ = read_teacher_candidates(inputs)
    answered = [
        item
        for item in build_held_out_items("dev", env.folder.dev)
        # What was never answered says nothing of the teacher; a refusal or an unusable answer does.
        if candidates[item.prompt_id]["status"] not in (None, "failed")
    ]
    items = sorted(answered, key=lambda item: hash_content(item.id))[: gate.items]
    rows = []
    for item in items:
        found = candidates[item.prompt_id]
        answer = json.loads(found["answer"]) if found["answer"] else None
        rows.append(build_prediction_row(kind, "teacher", item, answer, found["confidence"], None))
    if gate.teacher_over_base is not None and items:
        rows += _predict_with_base(env, kind, items)
    frame = build_frame(rows, PREDICTIONS, ("system", "item_id"))
    scores = compute_gate_scores(kind, frame, task.evaluation)
    wanted = min(gate.items, len(env.folder.dev))
    recorded = all(one.is_replay for one in task.teacher_specs)
    check = build_gate_check(scores, gate, answered=len(items), wanted=wanted, recorded=recorded)
    checks = [check_table("teacher_gate", frame), check]
    blocked = build_blocked_fields("teacher_gate", checks)
    record = inputs.build_record(compute_data_version(frame) if blocked else PASSED_VERSION, frame.height, **blocked)
    env.lake.write(env.task_name, frame, record)
    shown: dict[str, DisplayValue] = {
        "passed": not blocked,
        "items": len(items),
        **_build_gate_metadata(scores),
        "sample": sample_rows(frame, ["system", "item_id", "reference", "answer", "correct"], 8),
    }
    return StageResult(record, shown, checks)


def _predict_with_base(env: StageContext, kind: Kind, items: list[EvaluationItem]) -> list[dict[str, object]]:
    from distill_dagster.student.predict import load_predictor
    from distill_dagster.student.types import TaskSettings

    task = env.folder.task
    settings = TaskSettings.from_task(task)
    progress.report_progress("predicting with base", 0, 1)
    base = load_predictor(task.students[task.chosen_student], task.labels, settings, env.models)
    return predict_rows(kind, "base", base, items)


def _build_gate_metadata(scores: GateScores) -> dict[str, DisplayValue]:
    shown: dict[str, DisplayValue] = {"metric": scores.metric}
    for name, interval in (("teacher", scores.teacher), ("base", scores.base), ("difference", scores.difference)):
        if interval is not None and interval.value is not None:
            shown[name] = round(interval.value, 4)
            shown[f"{name}_interval"] = f"{interval.low:.3f} to {interval.high:.3f}"
    return shown


def require_passed_gate(inputs: StageInputs) -> None:
    """Nothing of a slice is asked before the teacher, with the settings of today, passed the gate.

    Raises:
        DistillError: it did not pass, was never made, or was passed with other settings of the teacher.
    """
    inputs.read_table("teacher_gate", PREDICTIONS)
    env = inputs.env
    record = env.lake.read_record(env.task_name, "teacher_gate")
    inputs.note_source("teacher_settings")
    if record is not None and record.inputs["teacher_settings"] != inputs.versions["teacher_settings"]:
        raise DistillError(
            f"{env.task_name}: the settings of the teacher changed since it passed teacher_gate, so no slice is asked "
            f"yet. Materialize golden_completions and teacher_gate first, or run `distill run {env.task_name}`, which "
            f"does so."
        )
