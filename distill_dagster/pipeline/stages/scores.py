"""The stage scored_completions: one candidate answer per prompt, with the scores that the task's filters read."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core import plots
from distill_dagster.curation.candidates.choose import add_imagined_columns, choose_candidates
from distill_dagster.curation.filters import collect_task_scorers
from distill_dagster.curation.scores import add_scores, get_scorer_versions
from distill_dagster.curation.task_view import TaskView
from distill_dagster.pipeline.source_versions import hash_answer_settings
from distill_dagster.pipeline.stages import judge
from distill_dagster.pipeline.stages.context import (
    DisplayValue,
    Markdown,
    SampleTable,
    StageContext,
    StageInputs,
    StageResult,
    sample_rows,
)
from distill_dagster.pipeline.stages.soft_labels import build_reliability_metadata, read_gate_reliability
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.schemas import COMPLETIONS, PROMPTS, SCORED, SCORES, TEACHER_PRIOR, conform_to_schema
from distill_dagster.tables.validation import check_table

_SAMPLE_KEY = ("prompt_id", "answer", "reasoning")


def make_scored_completions(env: StageContext, partition: str | None) -> StageResult:
    """Choose one candidate answer per prompt, let the judge score it, and compute the scores that filters read.

    Reads: seed_prompts, teacher_completions, teacher_prior, and its own previous table to reuse scores. Only to show
        it, what teacher_gate measured on dev.
    Writes: SCORED.
    Asks a teacher: only in tasks with `judge`.
    Re-runs when: one of these, score_settings or judge_settings changes, or answers of the judge are missing.
    """
    inputs = StageInputs(env, "scored_completions", partition)
    prompts = inputs.read_table("seed_prompts", PROMPTS, partition)
    completions = inputs.read_table("teacher_completions", COMPLETIONS, partition)
    prior = inputs.read_table("teacher_prior", TEACHER_PRIOR)
    task = env.folder.task
    frame = add_imagined_columns(choose_candidates(task, prompts, completions, prior), prompts)
    judged = judge.judge_slice(inputs, frame, completions)
    frame = add_task_scores(inputs, judged.candidates if judged else frame, completions)
    checks = [check_table("scored_completions", frame), judge.check_all_judged(judged)]
    missing, usage = (judged.failed, judged.usage) if judged else (0, None)
    record = inputs.write_table(frame, checks, missing, usage, **build_scores_record(task))
    shown: dict[str, DisplayValue] = {
        "rows": frame.height,
        "without_answer": frame["answer"].null_count(),
        "mean_agreement": round(float(frame["agreement"].mean() or 0.0), 4),  # type: ignore[arg-type]
        "sample": sample_rows(frame, ["answer", "agreement", "confidence", "judge_score"]),
    }
    if task.teachers:
        shown["teachers"] = _count_by_teacher(frame)
    if frame["soft_labels"].null_count() < frame.height:
        shown |= build_reliability_metadata(read_gate_reliability(env))
    if task.has_labels:
        counts = frame.filter(pl.col("answer").is_not_null()).group_by("answer").len().sort("answer")
        png = plots.plot_counts({json.loads(a): n for a, n in counts.iter_rows()}, "Candidates by label", "rows")
        shown["labels"] = Markdown(plots.to_markdown_image(png))
    targeted = frame.filter(pl.col("target_label").is_not_null() & pl.col("answer").is_not_null())
    if targeted.height:
        pairs = targeted.select("answer", "target_label").iter_rows()
        hits = sum(json.loads(answer) == label for answer, label in pairs)
        shown["answered_as_meant"] = f"{hits} of {targeted.height}"
    return StageResult(record, shown | judge.build_judge_metadata(task, judged) | build_scores_metadata(task), checks)


def _count_by_teacher(frame: pl.DataFrame) -> SampleTable:
    """Rows by the teacher whose answer is the candidate."""
    counts = frame.group_by("teacher").agg(
        pl.len().alias("rows"),
        pl.col("answer").is_not_null().sum().alias("answered"),
        pl.col("confidence").mean().round(4).alias("mean_confidence"),
    )
    return SampleTable(counts.sort("rows", "teacher", descending=[True, False]).to_dicts())


def add_task_scores(inputs: StageInputs, candidates: pl.DataFrame, completions: pl.DataFrame) -> pl.DataFrame:
    """The candidates with their scores. A score that the same scorer version computed before is reused."""
    env, task = inputs.env, inputs.env.folder.task
    scorers = collect_task_scorers(task)
    if not scorers:
        return candidates
    inputs.note_source("score_settings")
    record = env.lake.read_record(env.task_name, inputs.asset, inputs.partition)
    before = env.lake.read(env.task_name, inputs.asset, inputs.partition, SCORED)[0] if record else None
    rows = candidates.join(
        _select_chosen_samples(completions), on=_SAMPLE_KEY, how="left", nulls_equal=True, maintain_order="left"
    )
    known = _find_usable_scorers(record, task)
    scored = add_scores(rows, scorers, TaskView.from_task(task), before, known, env.workers)
    return conform_to_schema(scored.drop("finish_reason", "completion_tokens"), SCORED, ("prompt_id",))


def _select_chosen_samples(completions: pl.DataFrame) -> pl.DataFrame:
    """Finish reason and tokens of the first completion with the candidate's answer and reasoning."""
    ok = completions.filter((pl.col("status") == "ok") & pl.col("answer").is_not_null())
    first = ok.sort("prompt_id", "sample_index", "completion_id").unique(_SAMPLE_KEY, keep="first", maintain_order=True)
    return first.select(*_SAMPLE_KEY, "finish_reason", "completion_tokens")


def fill_missing_scores(env: StageContext, candidates: pl.LazyFrame, record: ArtifactRecord) -> pl.LazyFrame:
    """The last good rows of a slice, with every score that filters read now: an older table may lack some."""
    task = env.folder.task
    known = _find_usable_scorers(record, task)
    missing = [scorer for scorer in collect_task_scorers(task) if known.get(scorer.name) != scorer.version]
    if not missing:
        return candidates
    rows = candidates.collect()
    scored = add_scores(rows, missing, TaskView.from_task(task))
    new = {name for scorer in missing for name in scorer.fields}
    fields = [pl.col("new" if name in new else "scores").struct.field(name) for name in SCORES.to_schema()]
    both = rows.with_columns(scored["scores"].alias("new"))
    return both.with_columns(pl.struct(fields).alias("scores")).drop("new").lazy()


def _find_usable_scorers(record: ArtifactRecord | None, task: Task) -> dict[str, str]:
    """The versions of the scorers whose stored scores are still valid, by name."""
    if record is None or record.extra.get("scored_for") != hash_answer_settings(task):
        return {}
    return dict(record.extra.get("scorers", {}))


def build_scores_record(task: Task) -> dict[str, Any]:
    """The fields of the record for scores: the scorers with versions, and the answer settings they hold for."""
    versions = get_scorer_versions(collect_task_scorers(task))
    return {"scorers": versions, "scored_for": hash_answer_settings(task)} if versions else {}


def build_scores_metadata(task: Task) -> dict[str, DisplayValue]:
    """The scorers with their versions, for people."""
    versions = get_scorer_versions(collect_task_scorers(task))
    return {"scorers": ", ".join(f"{name} {version}" for name, version in versions.items())} if versions else {}
