"""Within the stage scored_completions: the scores that the task's filters read, each computed once."""

from __future__ import annotations

from typing import Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.curation.filters import collect_task_scorers
from distill_dagster.curation.scores import add_scores, get_scorer_versions
from distill_dagster.curation.task_view import TaskView
from distill_dagster.pipeline.source_versions import hash_answer_settings
from distill_dagster.pipeline.stages.context import DisplayValue, StageContext, StageInputs
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.tables.schemas import SCORED, SCORES, conform_to_schema


def add_task_scores(
    env: StageContext, inputs: StageInputs, candidates: pl.DataFrame, completions: pl.DataFrame
) -> pl.DataFrame:
    """The candidates with their scores. None is computed twice by one version."""
    task = env.folder.task
    scorers = collect_task_scorers(task)
    if not scorers:
        return candidates
    inputs.note_source("score_settings")
    record = env.lake.record(env.task_name, inputs.asset, inputs.partition)
    before = env.lake.read(env.task_name, inputs.asset, inputs.partition, SCORED)[0] if record else None
    rows = candidates.join(
        _select_chosen_samples(completions), on=_SAMPLE_KEY, how="left", nulls_equal=True, maintain_order="left"
    )
    scored = add_scores(rows, scorers, TaskView.from_task(task), before, _find_usable_scorers(record, task))
    return conform_to_schema(scored.drop("finish_reason", "completion_tokens"), SCORED, ("prompt_id",))


_SAMPLE_KEY = ("prompt_id", "answer", "reasoning")


def _select_chosen_samples(completions: pl.DataFrame) -> pl.DataFrame:
    """Finish reason and tokens of the first completion with the candidate's answer and reasoning."""
    ok = completions.filter((pl.col("status") == "ok") & pl.col("answer").is_not_null())
    first = ok.sort("prompt_id", "sample_index", "completion_id").unique(_SAMPLE_KEY, keep="first", maintain_order=True)
    return first.select(*_SAMPLE_KEY, "finish_reason", "completion_tokens")


def fill_missing_scores(env: StageContext, candidates: pl.LazyFrame, record: ArtifactRecord) -> pl.LazyFrame:
    """The last good rows of a slice with the scores that are read now: an older table may have others."""
    task = env.folder.task
    known = _find_usable_scorers(record, task)
    lacking = [one for one in collect_task_scorers(task) if known.get(one.name) != one.version]
    if not lacking:
        return candidates
    rows = candidates.collect()
    scored = add_scores(rows, lacking, TaskView.from_task(task))
    new = {name for one in lacking for name in one.fields}
    fields = [pl.col("new" if name in new else "scores").struct.field(name) for name in SCORES.to_schema()]
    both = rows.with_columns(scored["scores"].alias("new"))
    return both.with_columns(pl.struct(fields).alias("scores")).drop("new").lazy()


def _find_usable_scorers(record: ArtifactRecord | None, task: Task) -> dict[str, str]:
    """The scorers by version whose stored scores still hold."""
    if record is None or record.extra.get("scored_for") != hash_answer_settings(task):
        return {}
    return dict(record.extra.get("scorers", {}))


def build_scores_record(task: Task) -> dict[str, Any]:
    """What the record of scored_completions keeps of the scorers."""
    versions = get_scorer_versions(collect_task_scorers(task))
    return {"scorers": versions, "scored_for": hash_answer_settings(task)} if versions else {}


def build_scores_metadata(task: Task) -> dict[str, DisplayValue]:
    """What a person should see of them."""
    versions = get_scorer_versions(collect_task_scorers(task))
    return {"scorers": ", ".join(f"{name} {version}" for name, version in versions.items())} if versions else {}
