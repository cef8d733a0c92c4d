"""The stage that computes the figures of one student and writes its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core import plots
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import ModelError
from distill_dagster.core.hashing import hash_content
from distill_dagster.curation.dataset.teacher_counts import count_rows_by_teacher
from distill_dagster.evaluation.costs import DistillationCost
from distill_dagster.evaluation.formatting import (
    build_summary_rows,
    format_metric_name,
    format_metric_name_in_sentence,
)
from distill_dagster.evaluation.golden_items import NearestRow, find_errors
from distill_dagster.evaluation.golden_looks import append_golden_look, read_golden_looks
from distill_dagster.evaluation.leaderboard_page import write_leaderboard
from distill_dagster.evaluation.metrics import TEACHER, build_metrics_frame, compute_metrics, compute_win_rate
from distill_dagster.evaluation.metrics_table import check_metrics_table
from distill_dagster.evaluation.recommendation import recommend
from distill_dagster.evaluation.report import ReportInputs, write_report
from distill_dagster.evaluation.system_reliability import measure_system_reliability
from distill_dagster.kinds import get_kind
from distill_dagster.pipeline.distillation_cost import (
    build_teacher_facts,
    compute_distillation_cost,
    describe_cost_method,
)
from distill_dagster.pipeline.model_terms import list_model_terms
from distill_dagster.pipeline.stages.context import (
    DisplayValue,
    Markdown,
    SampleTable,
    StageContext,
    StageInputs,
    StageResult,
)
from distill_dagster.pipeline.stages.nearest_rows import MOST_ERRORS, find_nearest_rows
from distill_dagster.pipeline.stages.training_summary import (
    build_loss_curves,
    describe_kept_epoch,
    describe_rows,
    describe_training,
)
from distill_dagster.prompts.seeds import build_messages
from distill_dagster.release.routing.summary import summarize_routing
from distill_dagster.student.types import StudentPrompt
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tables.parquet import write_parquet
from distill_dagster.tables.schemas import DATASET, JUDGED_PAIRS, PREDICTIONS

JUDGED_PAIRS_FILE = "judged_pairs.parquet"
MAX_LEAK_CHARS = 300
"""Characters of a prompt in the report's table of leaks."""
VERSIONED_PACKAGES = ("torch", "transformers", "peft", "litellm", "dagster")


def make_eval_report(env: StageContext, partition: str | None) -> StageResult:
    """Compare all systems, log this look at golden, and then swap in the report folder.

    Reads: predictions, filtered_dataset with its rejected rows, student_adapter's log, golden.jsonl and dev.jsonl;
        judged_pairs, if the judge compares answers.
    Writes: a folder with report.html, report.md, metrics.json and predictions.parquet (PREDICTIONS); and the page next
        to it that compares all students.
    Asks a teacher: no.
    Re-runs when: one of these or evaluation_settings changes; the settings include the providers' terms.
    """
    assert partition is not None
    inputs = StageInputs(env, "eval_report", partition)
    for source in ("evaluation_settings", "golden_set"):
        inputs.note_source(source)
    predictions = inputs.read_table("predictions", PREDICTIONS, partition)
    dataset = inputs.read_table("filtered_dataset", DATASET)
    rejected = inputs.read_rejected_rows()
    adapter = inputs.find_folder("student_adapter", partition)
    task = env.folder.task
    record = env.lake.read_record(env.task_name, "predictions", partition)
    dataset_record = env.lake.read_record(env.task_name, "filtered_dataset")
    assert record is not None
    assert dataset_record is not None

    facts, use = record.extra["facts"], record.extra.get("teacher_use")
    if use is not None:  # a record of an earlier version has these among its facts
        facts[TEACHER] |= build_teacher_facts(task, use)
    metrics = compute_metrics(predictions, facts, task.label_names, task.evaluation, get_kind(task))
    judged = inputs.read_table("judged_pairs", JUDGED_PAIRS, partition) if "judged_pairs" in inputs.upstream else None
    if judged is not None:
        metrics = replace(metrics, win_rate=compute_win_rate(judged, task.evaluation))
    metrics = replace(metrics, distillation=compute_distillation_cost(env, partition, metrics, use or {}))
    recommendation = recommend(metrics)
    settings = hash_content({name: version for name, version in record.inputs.items() if "settings" in name})
    looks = env.reports / env.task_name / "golden_looks.jsonl"
    created = inputs.build_record("", predictions.height).created_at
    append_golden_look(
        looks,
        {
            "at": created,
            "student": partition,
            "run_id": env.run_id,
            "settings_hash": settings,
            "dataset_version": inputs.versions["filtered_dataset"],
            "predictions_version": record.data_version,
        },
    )
    env.lake.merge_log(env.task_name, looks)
    terms = [t for t in list_model_terms(task) if t["role"] != "imaginer" or _has_synthetic_rows(dataset)]
    teachers = count_rows_by_teacher(dataset.lazy(), rejected.lazy())
    notice = describe_shared_base(task, partition, [line["teacher"] for line in teachers])
    summary = build_summary_rows(metrics)
    nearest, nearest_missing = _find_nearest_rows(env, dataset, predictions)
    report_inputs = ReportInputs(
        task=env.task_name,
        student=partition,
        dataset_version=inputs.versions["filtered_dataset"],
        settings_hash=settings,
        created_at=created,
        texts={row.id: row.text for row in [*env.folder.golden, *env.folder.dev]},
        nearest=nearest,
        nearest_missing=nearest_missing,
        kind=get_kind(task),
        dataset=_count_dataset_rows(dataset, dataset_record),
        teachers=teachers,
        reliability=measure_system_reliability(predictions, get_kind(task)),
        temperatures=dataset_record.extra.get("temperatures", {}),
        routing=summarize_routing(task.routing, predictions),
        leaks=_list_leaks(rejected),
        training={f"{name} loss": points for name, points in build_loss_curves(adapter).items()},
        how_trained=f"{describe_training(adapter)} {describe_rows(adapter)}".strip(),
        kept_epoch=describe_kept_epoch(adapter),
        golden_looks=sorted(
            (look for look in read_golden_looks(looks) if look.get("student") == partition),
            key=lambda look: str(look.get("at", "")),
        ),
        cost_method=describe_cost_method(task, use or {}),
        latency_method=record.extra.get("latency_method", "The method was not recorded."),
        versions={name: metadata.version(name) for name in VERSIONED_PACKAGES},
        notice=notice,
        terms=terms,
        extra={"summary": summary},
    )

    def fill(folder: Path) -> str:
        write_report(folder, predictions, metrics, recommendation, report_inputs)
        if judged is not None:
            write_parquet(judged, folder / JUDGED_PAIRS_FILE, {})
        return hash_content(inputs.versions)

    report_record = env.lake.write_folder(
        env.task_name, "eval_report", partition, lambda v: inputs.build_record(v, predictions.height), fill
    )
    target = env.lake.get_folder(env.task_name, "eval_report", partition)
    env.lake.refresh_reports(env.task_name, task.students)  # the leaderboard compares all of them
    intervals = [
        (name, system.score.value, system.score.low, system.score.high)
        for name, system in metrics.golden.systems.items()
        if system.score.value is not None and system.score.low is not None and system.score.high is not None
    ]
    png = plots.plot_intervals(
        intervals, f"{format_metric_name(metrics.metric)} on golden", format_metric_name_in_sentence(metrics.metric)
    )
    shown: dict[str, DisplayValue] = {
        "verdict": recommendation.text,
        "report": target / "report.html",
        "leaderboard": write_leaderboard(
            target.parent, env.task_name, list(task.students), task.evaluation, get_kind(task)
        ),
        metrics.metric: Markdown(plots.to_markdown_image(png)),
        **_build_cost_metadata(metrics.distillation),
        "terms": "; ".join(dict.fromkeys(entry["summary"] for entry in terms)),
        "summary": SampleTable([dict(row) for row in summary]),
        **{f"{metrics.metric}_{name}": float(value) for name, value, _, _ in intervals},
    }
    problem = check_metrics_table(build_metrics_frame(metrics))
    details = {"problem": problem or "", "notice": notice or ""}
    return StageResult(report_record, shown, [CheckResult("metrics_table", problem is None, details=details)])


def _find_nearest_rows(
    env: StageContext, dataset: pl.DataFrame, predictions: pl.DataFrame
) -> tuple[dict[str, tuple[NearestRow, ...]], str]:
    """The training rows that are nearest to each error on golden; without any, one sentence on why if there is one."""
    texts = {row.id: StudentPrompt.from_messages(build_messages(row)).text for row in env.folder.golden}
    kind = get_kind(env.folder.task)
    errors = {item_id: texts[item_id] for item_id in find_errors(predictions, kind, MOST_ERRORS) if item_id in texts}
    try:
        return find_nearest_rows(dataset, errors, env.models), ""
    except ModelError as error:
        return {}, f"Training rows near the errors are not shown, because there is no sentence model: {error}"


def _build_cost_metadata(cost: DistillationCost | None) -> dict[str, float]:
    """What the distillation took, and the requests after which it has paid for itself, as far as they are known."""
    if cost is None or cost.usd is None:
        return {}
    return {"distillation_usd": cost.usd} | ({} if cost.break_even is None else {"break_even": cost.break_even})


def describe_shared_base(task: Task, student: str, teachers: Sequence[str]) -> str | None:
    """What a reader needs to know if the teacher and the student are the same model, by the names of their weights.

    Args:
        teachers: who answered the rows of the dataset, the one with most rows first. In a cascade, a teacher that
            answered a few rows is not the one that was distilled.
    """
    specs = {name: part.teacher for name, part in task.list_teachers()}
    spec = next((specs[name] for name in teachers if name in specs), None)
    base = _get_weights_name(task.students[student].model)
    if spec is None or spec.is_replay or _get_weights_name(spec.model) != base:
        return None
    return (
        f"The teacher {spec.model} and the student {student} are the same model before training. The student learns "
        "from the teacher's prompt, its few-shot examples and their average, not from a larger model (context "
        "distillation, Snell et al. 2022). For a larger teacher, change `teacher.model` in task.yaml."
    )


def _get_weights_name(model: str) -> str:
    """The last part of a model's name: embedded/x, org/X and a folder x have the same weights."""
    return model.rstrip("/").rpartition("/")[2].casefold()


def _has_synthetic_rows(dataset: pl.DataFrame) -> bool:
    return bool((dataset["origin"] == "synthetic").any())


def _count_dataset_rows(dataset: pl.DataFrame, record: ArtifactRecord) -> dict[str, dict[str, int]]:
    """Kept rows by split, and dropped rows by reason."""
    kept = dict(dataset.group_by("split").len().sort("split").iter_rows())
    return {"kept": kept, "dropped": {reason: n for reason, n in record.extra.get("reasons", {}).items() if n}}


def _list_leaks(rejected: pl.DataFrame) -> list[dict[str, Any]]:
    """The rows that the dataset leaves out because they repeat golden or dev."""
    rows = rejected.filter(pl.col("drop_reason") == "contaminated")
    return [
        {"text": get_user_text(messages)[:MAX_LEAK_CHARS], "slice": slice_key, "why": why}
        for messages, slice_key, why in rows.select("messages", "slice", "drop_detail").iter_rows()
    ]
