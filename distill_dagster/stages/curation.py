"""The stage from scored candidates to the dataset."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from distill_dagster import plots
from distill_dagster.checks import dataset_checks, valid_table
from distill_dagster.curation.dataset import curate
from distill_dagster.curation.human import human_candidates
from distill_dagster.errors import DistillError
from distill_dagster.lake import node
from distill_dagster.stages.common import Env, Made, Markdown, Reading, Shown, blocking_failures, sample_rows
from distill_dagster.tables import REJECTED, SCORED, data_version

REJECTED_ROWS = "rejected_rows"


def make_filtered_dataset(env: Env, partition: str | None) -> Made:
    reading = Reading(env, "filtered_dataset", partition)
    for source in ("slice_manifest", "human_examples", "curation_settings"):
        reading.source(source)
    held_out = reading.held_out()
    keys = env.folder.slice_keys()
    absent = [key for key in keys if env.lake.record(env.task_name, "scored_completions", key) is None]
    if absent:
        names = ", ".join(node("scored_completions", key) for key in absent[:10])
        raise DistillError(f"{names} has not been materialized yet. Run `distill run {env.task_name}`.")
    task = env.folder.task
    people = env.folder.human + (env.folder.examples if task.curation.mix_examples else [])
    frames = [reading.table("scored_completions", SCORED, key) for key in keys]
    candidates = pl.concat([*frames, human_candidates(people)])
    cut = curate(candidates, held_out, task.label_names, task.curation)
    checks = [
        valid_table("filtered_dataset", cut.dataset),
        *dataset_checks(candidates, cut.dataset, cut.rejected, held_out, task.label_names, task.curation.min_rows),
    ]
    blocked = blocking_failures("filtered_dataset", checks)
    extra: dict[str, Any] = {"reasons": cut.reasons(), "candidates": candidates.height} | (
        {"blocked": blocked} if blocked else {}
    )
    # The rejected rows first: whoever sees the dataset finds beside it what was left out.
    beside = Reading(env, "filtered_dataset", REJECTED_ROWS)
    beside.inputs = reading.inputs
    record = reading.record(data_version(cut.dataset), cut.dataset.height, **extra)
    rejected_record = beside.record(data_version(cut.rejected), cut.rejected.height)
    env.lake.write(env.task_name, cut.rejected, rejected_record)
    env.lake.write(env.task_name, cut.dataset, record)
    labels = cut.dataset.group_by("answer").len().sort("answer")
    balance = plots.bar_counts({json.loads(a): n for a, n in labels.iter_rows()}, "Kept rows by label", "rows")
    drops = plots.bar_counts(cut.reasons(), "Dropped rows by reason", "rows")
    shown: dict[str, Shown] = {
        "candidates": candidates.height,
        "human_examples": len(people),
        "kept": cut.dataset.height,
        "rejected": cut.rejected.height,
        "train": cut.dataset.filter(pl.col("split") == "train").height,
        "validation": cut.dataset.filter(pl.col("split") == "validation").height,
        "label_balance": Markdown(plots.markdown_image(balance)),
        "drop_reasons": Markdown(plots.markdown_image(drops)),
        "sample": sample_rows(cut.dataset, ["answer", "split", "slice"]),
        "rejected_sample": sample_rows(cut.rejected, ["answer", "drop_reason", "drop_detail", "slice"], 10),
    }
    return Made(record, shown, checks)


def read_rejected(env: Env) -> pl.DataFrame:
    return env.lake.read(env.task_name, "filtered_dataset", REJECTED_ROWS, REJECTED)[0]
