"""The teacher's soft labels on dev: how well they are calibrated, and the temperatures that rescale the dataset's."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from distill_dagster.core import plots
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.curation.candidates.choose import choose_candidates
from distill_dagster.curation.soft_labels.reliability import Reliability, measure_reliability
from distill_dagster.curation.soft_labels.temperature import (
    MIN_DEV_ROWS,
    SoftAnswer,
    TemperatureFit,
    fit_temperature,
)
from distill_dagster.pipeline.stages.context import DisplayValue, Markdown, SampleTable, StageContext, StageInputs
from distill_dagster.prompts.seeds import build_labelled_prompts, build_messages, compute_prompt_id
from distill_dagster.tables.schemas import COMPLETIONS, TEACHER_PRIOR
from distill_dagster.tasks import LabelledRow

CALIBRATION_CHECK = "soft_labels_calibrated"
MAX_CALIBRATION_ERROR = 0.1
"""A larger expected calibration error on dev is a warning, if chance does not explain it."""


def measure_teacher_reliability(candidates: list[dict[str, Any]], correct: list[bool]) -> Reliability | None:
    """How well the teacher's confidences on dev are calibrated; None if it states no probabilities.

    Args:
        candidates: rows of SCORED. Those without soft labels are left out: their confidence says nothing.
        correct: whether the answer of each is right.
    """
    rows = [
        (row["confidence"], hit)
        for row, hit in zip(candidates, correct, strict=True)
        if row["soft_labels"] and row["confidence"] is not None
    ]
    if all(confidence == 1 for confidence, _ in rows):
        return None
    return measure_reliability([confidence for confidence, _ in rows], [hit for _, hit in rows])


def build_calibration_check(measured: Reliability | None, *, is_rescaled: bool) -> CheckResult:
    """Build the check `soft_labels_calibrated`, a warning.

    Args:
        is_rescaled: whether the dataset rescales the soft labels anyway.
    """
    if measured is None:
        return CheckResult(CALIBRATION_CHECK, True, "warning", {"why": "The teacher states no probabilities."})
    details: dict[str, Any] = {
        "dev_rows": measured.rows,
        "expected_calibration_error": round(measured.ece, 4),
        "by_chance_up_to": round(measured.chance_ece, 4),
        "mean_confidence": round(measured.stated, 4),
        "share_right": round(measured.right, 4),
    }
    passed = is_rescaled or measured.ece <= MAX_CALIBRATION_ERROR or not measured.is_beyond_chance
    if not passed:
        much = "more" if measured.stated > measured.right else "less"
        details["why"] = (
            f"The teacher is {much} sure of its answers than they are right. `curation.rescale_soft_labels: "
            "temperature` corrects what the student learns from."
        )
    return CheckResult(CALIBRATION_CHECK, passed, "warning", details)


def build_reliability_metadata(measured: Reliability | None, *, has_plot: bool = False) -> dict[str, DisplayValue]:
    """The figures and the table for people, and if wanted the plot. Empty without a measurement."""
    if measured is None:
        return {}
    shown: dict[str, DisplayValue] = {
        "expected_calibration_error": round(measured.ece, 4),
        "reliability": SampleTable(
            [
                {
                    "confidence": f"{one.low:g} to {one.high:g}",
                    "dev_rows": one.rows,
                    "mean_confidence": round(one.stated, 4),
                    "share_right": round(one.right, 4),
                    "interval": f"{one.right_low:.3f} to {one.right_high:.3f}",
                }
                for one in measured.bins
            ]
        ),
    }
    if has_plot:
        png = plots.plot_reliability({"teacher": measured.list_points()}, "Confidence and right answers on dev")
        shown["reliability_plot"] = Markdown(plots.to_markdown_image(png))
    return shown


def read_gate_reliability(env: StageContext) -> Reliability | None:
    """The figures on dev that the stage teacher_gate measured last, for display only; None if it measured none."""
    record = env.lake.read_record(env.task_name, "teacher_gate")
    found = record.extra.get("reliability") if record is not None else None
    return Reliability.from_dict(found) if found else None


def fit_temperatures(inputs: StageInputs) -> dict[str, TemperatureFit]:
    """Fit the temperature of each teacher on its answers to dev; golden rows are not looked at.

    Raises:
        DistillError: no teacher answered a dev row.
    """
    answers = build_soft_answers(inputs, inputs.env.folder.dev)
    if not answers:
        raise DistillError(
            f"{inputs.env.task_name}: no dev row has soft labels of a teacher, and `curation.rescale_soft_labels: "
            "temperature` is fitted on dev.jsonl. Ask again for golden_completions, or set it to `none`."
        )
    return {teacher: fit_temperature(found) for teacher, found in sorted(answers.items())}


def build_soft_answers(inputs: StageInputs, rows: list[LabelledRow]) -> dict[str, list[SoftAnswer]]:
    """The teachers' answers to labelled rows by the name of the teacher; those without soft labels are left out.

    Args:
        rows: rows that golden_completions has answers to.
    """
    completions = inputs.read_table("golden_completions", COMPLETIONS)
    prior = inputs.read_table("teacher_prior", TEACHER_PRIOR)
    prompts = build_labelled_prompts(rows, "dev").unique("prompt_id", keep="first", maintain_order=True)
    candidates = choose_candidates(inputs.env.folder.task, prompts, completions, prior)
    references = {compute_prompt_id(build_messages(row)): json.loads(row.answer_json) for row in rows}
    answers: dict[str, list[SoftAnswer]] = {}
    for row in candidates.filter(pl.col("answer").is_not_null()).iter_rows(named=True):
        probs = {entry["label"]: entry["prob"] for entry in row["soft_labels"] or []}
        one = SoftAnswer(probs, json.loads(row["answer"]), references[row["prompt_id"]])
        if one.answer in one.named:
            answers.setdefault(row["teacher"], []).append(one)
    return answers


def list_temperatures(fits: dict[str, TemperatureFit]) -> list[dict[str, Any]]:
    """A line about each teacher's temperature, for people."""
    return [
        {"teacher": teacher}
        | fit.to_dict()
        | {"remark": "" if fit.is_fitted else f"not fitted: fewer than {MIN_DEV_ROWS} dev rows"}
        for teacher, fit in fits.items()
    ]
