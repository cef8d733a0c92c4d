"""The stage from scored candidates to the dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core import plots
from distill_dagster.core.checks import Check
from distill_dagster.core.errors import DistillError
from distill_dagster.core.limits import Limits
from distill_dagster.curation.dataset.balance import below_floors
from distill_dagster.curation.dataset.human_rows import human_candidates
from distill_dagster.curation.dataset.invariants import dataset_checks, slice_checks
from distill_dagster.curation.dataset.shift import measures, profile, profile_to_compare, shift_checks
from distill_dagster.curation.filters import STEPS, Filter
from distill_dagster.curation.filters.run import BATCH_ROWS
from distill_dagster.curation.scores import add_scores
from distill_dagster.curation.task_view import About
from distill_dagster.kinds import kind_of
from distill_dagster.pipeline.backfill_selection import SLICE_STAGES
from distill_dagster.pipeline.freshness import State
from distill_dagster.pipeline.stages import scores
from distill_dagster.pipeline.stages.context import (
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
from distill_dagster.student.sentences import sentence_embeddings
from distill_dagster.tables.data_versions import data_version
from distill_dagster.tables.schemas import REJECTED, SCORED
from distill_dagster.tables.validation import valid_table

if TYPE_CHECKING:
    from distill_dagster.curation.dataset.curate import Curated

REJECTED_ROWS = "rejected_rows"


def make_filtered_dataset(env: Env, partition: str | None) -> Made:
    # Loaded where it is used: every process that loads the code location would wait for NumPy and pyarrow.
    from distill_dagster.curation.dataset.comparison_cache import Compared
    from distill_dagster.curation.dataset.curate import curate

    reading = Reading(env, "filtered_dataset", partition)
    for source in ("slice_manifest", "human_examples", "curation_settings"):
        reading.source(source)
    held_out = reading.held_out()
    task = env.folder.task
    about = About.of(task)
    people = env.folder.human + (env.folder.examples if task.curation.mix_examples else [])
    limits = env.limits or Limits()
    with limits.folder() as temporary:
        slices, lines = _slices(env, reading, temporary)
        # What people answered is scored here, and nowhere kept: it is little.
        answered = add_scores(human_candidates(people, kind_of(task).answer_kind), task.scorers, about)
        candidates = pl.concat([*slices, answered.lazy()])
        if sum(line["rows"] for line in lines) <= BATCH_ROWS:
            # No more than one batch: held, since every pass would open the files of all slices again.
            candidates = candidates.collect().lazy()
        cut = curate(
            candidates,
            held_out,
            task.label_names,
            task.curation,
            about,
            items=held_out_table(env.folder),
            embed=lambda texts: sentence_embeddings(texts, env.models),
            limits=limits,
            compared=Compared(env.lake.root / env.task_name / ".compared"),
            folder=temporary,
        )
        checks, noted = _checked(env, cut, lines, held_out)
        # The rejected rows first: whoever sees the dataset finds beside it what was left out.
        beside = Reading(env, "filtered_dataset", REJECTED_ROWS)
        beside.inputs = reading.inputs
        record = reading.record(data_version(cut.kept), cut.kept_rows, **noted)
        rejected_record = beside.record(data_version(cut.left_out), cut.candidates - cut.kept_rows)
        env.lake.write(env.task_name, cut.left_out, rejected_record)
        env.lake.write(env.task_name, cut.kept, record)
        shown = {"human_examples": len(people)} | _shown(task, cut, candidates) | {"slices": Rows(lines)}
    return Made(record, shown, checks)


def _checked(
    env: Env, cut: Curated, slices: list[dict[str, Any]], held_out: set[str]
) -> tuple[list[Check], dict[str, Any]]:
    """The checks of a dataset, and what its record keeps of it."""
    task = env.folder.task
    before = env.lake.record(env.task_name, "filtered_dataset")
    checks = [
        valid_table("filtered_dataset", cut.kept),
        *slice_checks(slices, task.curation.wanted_slices(len(slices))),
        *dataset_checks(cut.candidates, cut.kept, cut.left_out, held_out, task.label_names, task.curation.min_rows),
    ]
    measured = measures(cut.kept, task.has_labels)
    now = profile(cut.candidates, measured, cut.reasons())
    compared = profile_to_compare(before.extra if before else None)
    checks += shift_checks(measured, now, compared, task.curation.shift)
    short = below_floors(cut.kept, task.curation.balance)
    checks.append(Check("floors_met", not short, "warning", {name: f"{n} rows" for name, n in short.items()}))
    noted: dict[str, Any] = {"reasons": cut.reasons(), "candidates": cut.candidates}
    noted |= {"profile": now, "compared_with": compared}
    noted |= {"masked_rows": cut.masked} if cut.masked else {}
    return checks, noted | blocked_by("filtered_dataset", checks)


def _shown(task: Task, cut: Curated, candidates: pl.LazyFrame) -> dict[str, Shown]:
    dropped = {reason: count for reason, count in cut.reasons().items() if count}
    drops = plots.bar_counts(dropped or cut.reasons(), "Dropped rows by reason", "rows")
    sides = dict(cut.kept.group_by("split").len().collect(engine="streaming").iter_rows())
    shown: dict[str, Shown] = {
        "candidates": cut.candidates,
        "kept": cut.kept_rows,
        "rejected": cut.candidates - cut.kept_rows,
        "train": sides.get("train", 0),
        "validation": sides.get("validation", 0),
        "masked_rows": cut.masked,
        "leaks": Rows(cut.leaks.head(50).to_dicts()),
        "filters": Rows(filters_shown(task.filters, cut.reasons())),
        "drop_reasons": Markdown(plots.markdown_image(drops)),
        "sample": sample_rows(cut.kept, ["answer", "split", "slice"]),
        "rejected_sample": sample_rows(cut.left_out, ["answer", "drop_reason", "drop_detail", "slice"], 10),
    }
    if task.has_labels:
        labels = cut.kept.group_by("answer").len().sort("answer").collect(engine="streaming")
        balance = plots.bar_counts({json.loads(a): n for a, n in labels.iter_rows()}, "Kept rows by label", "rows")
        shown["label_balance"] = Markdown(plots.markdown_image(balance))
    meant = candidates.filter(pl.col("target_label").is_not_null() & pl.col("answer").is_not_null())
    counts = meant.group_by("answer", "target_label").len().collect(engine="streaming")
    if meant_rows := counts["len"].sum():
        same = sum(rows for answer, label, rows in counts.iter_rows() if json.loads(answer) == label)
        shown["answered_as_meant"] = f"{same} of {meant_rows} with a target_label"
    return shown


def _slices(env: Env, reading: Reading, folder: Path) -> tuple[list[pl.LazyFrame], list[dict[str, Any]]]:
    """The candidates of every slice: what it gives now, else its last good rows, else none; and a line on each.

    Raises:
        DistillError: no slice gives anything.
    """
    frames: list[pl.LazyFrame] = []
    lines: list[dict[str, Any]] = []
    state = State(env.folder, env.lake)
    for key in env.folder.slice_keys():
        good = reading.last_good("scored_completions", SCORED, key, folder)
        why = [s for s in (state.status(stage, key) for stage in SLICE_STAGES) if s.state != "fresh"]
        blocked = state.record("scored_completions", key)
        rows = 0 if good is None else good[1].rows
        line: dict[str, Any] = {"slice": key, "rows": rows, "gives": "its rows", "why": ""}
        if good is None:
            line |= {"gives": "nothing"}
        elif why or (blocked is not None and blocked.extra.get("blocked")):
            line |= {"gives": "its last good rows"}
        if line["gives"] != "its rows":
            line["why"] = f"{why[0].name}: {'; '.join(why[0].why)}"[:300] if why else "did not pass its checks"
        lines.append(line)
        frames += [] if good is None else [scores.completed(env, *good)]
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
