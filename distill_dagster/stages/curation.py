"""The stage from scored candidates to the dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from distill_dagster import plots
from distill_dagster.checks import Check, dataset_checks, slice_checks, valid_table
from distill_dagster.curation.about import About
from distill_dagster.curation.balance import below_floors
from distill_dagster.curation.compared import Compared
from distill_dagster.curation.dataset import curate
from distill_dagster.curation.filters import STEPS, Filter
from distill_dagster.curation.human import human_candidates
from distill_dagster.curation.scores import add_scores
from distill_dagster.curation.shift import profile, profile_to_compare, shift_checks
from distill_dagster.errors import DistillError
from distill_dagster.kinds import kind_of
from distill_dagster.selection import SLICE_STAGES
from distill_dagster.stages import scores
from distill_dagster.stages.common import (
    Env,
    Made,
    Markdown,
    Reading,
    Rows,
    Shown,
    blocked_by,
    held_out_table,
    sample_rows,
)
from distill_dagster.state import State
from distill_dagster.student.sentences import sentence_embeddings
from distill_dagster.tables import REJECTED, SCORED, data_version

REJECTED_ROWS = "rejected_rows"


def make_filtered_dataset(env: Env, partition: str | None) -> Made:
    reading = Reading(env, "filtered_dataset", partition)
    for source in ("slice_manifest", "human_examples", "curation_settings"):
        reading.source(source)
    held_out = reading.held_out()
    task = env.folder.task
    about = About.of(task)
    people = env.folder.human + (env.folder.examples if task.curation.mix_examples else [])
    frames, slices = _slices(env, reading)
    # What people answered is scored here, and nowhere kept: it is little.
    answered = add_scores(human_candidates(people, kind_of(task).answer_kind), task.scorers, about)
    candidates = pl.concat([*frames, answered])
    before = env.lake.record(env.task_name, "filtered_dataset")
    cut = curate(
        candidates,
        held_out,
        task.label_names,
        task.curation,
        about,
        items=held_out_table(env.folder),
        embed=lambda texts: sentence_embeddings(texts, env.models),
        limits=env.limits,
        compared=Compared(env.lake.root / env.task_name / ".compared"),
    )
    checks = [
        valid_table("filtered_dataset", cut.dataset),
        *slice_checks(slices, task.curation.wanted_slices(len(slices))),
        *dataset_checks(candidates, cut.dataset, cut.rejected, held_out, task.label_names, task.curation.min_rows),
    ]
    now = profile(candidates.height, cut.dataset, cut.reasons(), task.has_labels)
    compared = profile_to_compare(before.extra if before else None)
    checks += shift_checks(cut.dataset, now, compared, task.curation.shift)
    short = below_floors(cut.dataset, task.curation.balance)
    checks.append(Check("floors_met", not short, "warning", {name: f"{n} rows" for name, n in short.items()}))
    extra: dict[str, Any] = {"reasons": cut.reasons(), "candidates": candidates.height}
    extra |= {"profile": now, "compared_with": compared}
    extra |= {"masked_rows": cut.masked} if cut.masked else {}
    extra |= blocked_by("filtered_dataset", checks)
    # The rejected rows first: whoever sees the dataset finds beside it what was left out.
    beside = Reading(env, "filtered_dataset", REJECTED_ROWS)
    beside.inputs = reading.inputs
    record = reading.record(data_version(cut.dataset), cut.dataset.height, **extra)
    rejected_record = beside.record(data_version(cut.rejected), cut.rejected.height)
    env.lake.write(env.task_name, cut.rejected, rejected_record)
    env.lake.write(env.task_name, cut.dataset, record)
    meant = candidates.filter(pl.col("target_label").is_not_null() & pl.col("answer").is_not_null())
    dropped = {reason: count for reason, count in cut.reasons().items() if count}
    drops = plots.bar_counts(dropped or cut.reasons(), "Dropped rows by reason", "rows")
    shown: dict[str, Shown] = {
        "candidates": candidates.height,
        "human_examples": len(people),
        "kept": cut.dataset.height,
        "rejected": cut.rejected.height,
        "train": cut.dataset.filter(pl.col("split") == "train").height,
        "validation": cut.dataset.filter(pl.col("split") == "validation").height,
        "masked_rows": cut.masked,
        "leaks": Rows(cut.leaks.head(50).to_dicts()),
        "filters": Rows(filters_shown(task.filters, cut.reasons())),
        "drop_reasons": Markdown(plots.markdown_image(drops)),
        "slices": Rows(slices),
        "sample": sample_rows(cut.dataset, ["answer", "split", "slice"]),
        "rejected_sample": sample_rows(cut.rejected, ["answer", "drop_reason", "drop_detail", "slice"], 10),
    }
    if task.has_labels:
        labels = cut.dataset.group_by("answer").len().sort("answer")
        balance = plots.bar_counts({json.loads(a): n for a, n in labels.iter_rows()}, "Kept rows by label", "rows")
        shown["label_balance"] = Markdown(plots.markdown_image(balance))
    if meant.height:
        same = [json.loads(answer) == label for answer, label in meant.select("answer", "target_label").iter_rows()]
        shown["answered_as_meant"] = f"{sum(same)} of {meant.height} with a target_label"
    return Made(record, shown, checks)


def _slices(env: Env, reading: Reading) -> tuple[list[pl.DataFrame], list[dict[str, Any]]]:
    """The candidates of every slice: what it gives now, else its last good rows, else none; and a line on each.

    Raises:
        DistillError: no slice gives anything.
    """
    frames: list[pl.DataFrame] = []
    lines: list[dict[str, Any]] = []
    state = State(env.folder, env.lake)
    for key in env.folder.slice_keys():
        frame = reading.last_good("scored_completions", SCORED, key)
        why = [s for s in (state.status(stage, key) for stage in SLICE_STAGES) if s.state != "fresh"]
        blocked = state.record("scored_completions", key)
        rows = 0 if frame is None else frame.height
        line: dict[str, Any] = {"slice": key, "rows": rows, "gives": "its rows", "why": ""}
        if frame is None:
            line |= {"gives": "nothing"}
        elif why or (blocked is not None and blocked.extra.get("blocked")):
            line |= {"gives": "its last good rows"}
        if line["gives"] != "its rows":
            line["why"] = f"{why[0].name}: {'; '.join(why[0].why)}"[:300] if why else "did not pass its checks"
        lines.append(line)
        frames += [] if frame is None else [scores.completed(env, key, frame)]
    if not frames:
        raise DistillError(
            f"No slice of {env.task_name} has scored completions yet. Run `distill run {env.task_name}`."
        )
    return frames, lines


def filters_shown(filters: Sequence[Filter], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The filters and steps in order, with their parameters and, where a dataset was made, what each dropped."""
    each = [(one.label, one.drop_reason, _parameters(one), one.masks()) for one in filters]
    each += [(name, name, "", False) for name in STEPS]
    return [
        {
            "order": number,
            "filter": name,
            "drop_reason": "(masks)" if masks else reason,
            "parameters": parameters,
            "dropped": counts.get(reason),
        }
        for number, (name, reason, parameters, masks) in enumerate(each, start=1)
    ]


def _parameters(one: Filter) -> str:
    return ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in one.shown().items())


def read_rejected(env: Env) -> pl.DataFrame:
    return env.lake.read(env.task_name, "filtered_dataset", REJECTED_ROWS, REJECTED)[0]
