"""The stage from scored candidates to the dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core import plots
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dataset.balance import count_below_floors
from distill_dagster.curation.dataset.human_rows import build_human_candidates
from distill_dagster.curation.dataset.invariants import check_dataset, check_slices
from distill_dagster.curation.dataset.shift import build_profile, check_shift, measure_rows, read_last_good_profile
from distill_dagster.curation.filters import (
    STEP_REASONS,
    Filter,
    collect_task_scorers,
    list_parameters,
    select_task_filters,
)
from distill_dagster.curation.filters.private_data_filter import PrivateDataFilter
from distill_dagster.curation.filters.run import FILTER_BATCH_ROWS
from distill_dagster.curation.scores import add_scores
from distill_dagster.curation.task_view import TaskView
from distill_dagster.kinds import get_kind
from distill_dagster.pipeline.backfill_selection import SLICE_STAGES
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.stage_table import REJECTED_ROWS
from distill_dagster.pipeline.stages import scores
from distill_dagster.pipeline.stages.context import (
    DisplayValue,
    Markdown,
    SampleTable,
    StageContext,
    StageInputs,
    StageResult,
    build_blocked_fields,
    build_held_out_table,
    sample_rows,
)
from distill_dagster.student.sentences import embed_sentences
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.schemas import SCORED
from distill_dagster.tables.validation import check_table

if TYPE_CHECKING:
    from distill_dagster.curation.dataset.curate import CuratedDataset


def make_filtered_dataset(env: StageContext, partition: str | None) -> StageResult:
    # Loaded where it is used: every process that loads the code location would wait for NumPy and pyarrow.
    from distill_dagster.curation.dataset.comparison_cache import ComparisonCache
    from distill_dagster.curation.dataset.curate import curate_dataset

    inputs = StageInputs(env, "filtered_dataset", partition)
    for source in ("slice_manifest", "human_examples", "curation_settings"):
        inputs.note_source(source)
    held_out = inputs.read_held_out_keys()
    task = env.folder.task
    about = TaskView.from_task(task)
    people = env.folder.human + (env.folder.examples if task.curation.mix_examples else [])
    limits = env.limits or ResourceLimits()
    with limits.make_folder() as temporary:
        slices, lines = _read_slices(env, inputs, temporary)
        # What people answered is scored here, and nowhere kept: it is little.
        answered = add_scores(
            build_human_candidates(people, get_kind(task).answer_kind), collect_task_scorers(task), about
        )
        candidates = pl.concat([*slices, answered.lazy()])
        if sum(line["rows"] for line in lines) <= FILTER_BATCH_ROWS:
            # No more than one batch: held, since every pass would open the files of all slices again.
            candidates = candidates.collect().lazy()
        cut = curate_dataset(
            candidates,
            held_out,
            task.label_names,
            task.curation,
            about,
            items=build_held_out_table(env.folder),
            embed=lambda texts: embed_sentences(texts, env.models),
            limits=limits,
            compared=ComparisonCache(env.lake.root / env.task_name / ".compared"),
            folder=temporary,
        )
        checks, noted = _check_dataset(env, cut, lines, held_out)
        # The rejected rows first: whoever sees the dataset finds beside it what was left out.
        beside = StageInputs(env, "filtered_dataset", REJECTED_ROWS)
        beside.versions = inputs.versions
        record = inputs.build_record(compute_data_version(cut.kept), cut.kept_rows, **noted)
        rejected_record = beside.build_record(compute_data_version(cut.left_out), cut.candidates - cut.kept_rows)
        env.lake.write(env.task_name, cut.left_out, rejected_record)
        env.lake.write(env.task_name, cut.kept, record)
        shown = (
            {"human_examples": len(people)} | _build_metadata(task, cut, candidates) | {"slices": SampleTable(lines)}
        )
    return StageResult(record, shown, checks)


def _check_dataset(
    env: StageContext, cut: CuratedDataset, slices: list[dict[str, Any]], held_out: set[str]
) -> tuple[list[CheckResult], dict[str, Any]]:
    """The checks of a dataset, and what its record keeps of it."""
    task = env.folder.task
    before = env.lake.read_record(env.task_name, "filtered_dataset")
    checks = [
        check_table("filtered_dataset", cut.kept),
        *check_slices(slices, task.curation.compute_min_slices(len(slices))),
        *check_dataset(cut.candidates, cut.kept, cut.left_out, held_out, task.label_names, task.curation.min_rows),
    ]
    measured = measure_rows(cut.kept, task.has_labels)
    now = build_profile(cut.candidates, measured, cut.reasons())
    compared = read_last_good_profile(before.extra if before else None)
    checks += check_shift(measured, now, compared, task.curation.shift)
    short = count_below_floors(cut.kept, task.curation.balance)
    checks.append(CheckResult("floors_met", not short, "warning", {name: f"{n} rows" for name, n in short.items()}))
    noted: dict[str, Any] = {"reasons": cut.reasons(), "candidates": cut.candidates}
    noted |= {"profile": now, "compared_with": compared}
    noted |= {"masked_rows": cut.masked} if cut.masked else {}
    return checks, noted | build_blocked_fields("filtered_dataset", checks)


def _build_metadata(task: Task, cut: CuratedDataset, candidates: pl.LazyFrame) -> dict[str, DisplayValue]:
    dropped = {reason: count for reason, count in cut.reasons().items() if count}
    drops = plots.plot_counts(dropped or cut.reasons(), "Dropped rows by reason", "rows")
    sides = dict(cut.kept.group_by("split").len().collect(engine="streaming").iter_rows())
    shown: dict[str, DisplayValue] = {
        "candidates": cut.candidates,
        "kept": cut.kept_rows,
        "rejected": cut.candidates - cut.kept_rows,
        "train": sides.get("train", 0),
        "validation": sides.get("validation", 0),
        "masked_rows": cut.masked,
        "leaks": SampleTable(cut.leaks.head(50).to_dicts()),
        "filters": SampleTable(list_filters(select_task_filters(task), cut.reasons())),
        "drop_reasons": Markdown(plots.to_markdown_image(drops)),
        "sample": sample_rows(cut.kept, ["answer", "split", "slice"]),
        "rejected_sample": sample_rows(cut.left_out, ["answer", "drop_reason", "drop_detail", "slice"], 10),
    }
    if task.has_labels:
        labels = cut.kept.group_by("answer").len().sort("answer").collect(engine="streaming")
        balance = plots.plot_counts({json.loads(a): n for a, n in labels.iter_rows()}, "Kept rows by label", "rows")
        shown["label_balance"] = Markdown(plots.to_markdown_image(balance))
    meant = candidates.filter(pl.col("target_label").is_not_null() & pl.col("answer").is_not_null())
    counts = meant.group_by("answer", "target_label").len().collect(engine="streaming")
    if meant_rows := counts["len"].sum():
        same = sum(rows for answer, label, rows in counts.iter_rows() if json.loads(answer) == label)
        shown["answered_as_meant"] = f"{same} of {meant_rows} with a target_label"
    return shown


def _read_slices(
    env: StageContext, inputs: StageInputs, folder: Path
) -> tuple[list[pl.LazyFrame], list[dict[str, Any]]]:
    """The candidates of every slice: what it gives now, else its last good rows, else none; and a line on each.

    Raises:
        DistillError: no slice gives anything.
    """
    frames: list[pl.LazyFrame] = []
    lines: list[dict[str, Any]] = []
    state = TaskState(env.folder, env.lake)
    for key in env.folder.list_slice_keys():
        good = inputs.scan_last_good("scored_completions", SCORED, key, folder)
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
        frames += [] if good is None else [scores.fill_missing_scores(env, *good)]
    if not frames:
        raise DistillError(
            f"No slice of {env.task_name} has scored completions yet. Run `distill run {env.task_name}`."
        )
    return frames, lines


def list_filters(filters: Sequence[Filter], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The filters and steps in order, with their parameters and, where a dataset was made, what each dropped."""
    each = [(one.name, one.reason, _format_parameters(one), _is_masking(one)) for one in filters]
    each += [(name, name, "", False) for name in STEP_REASONS]
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


def _is_masking(one: Filter) -> bool:
    return isinstance(one, PrivateDataFilter) and one.action == "mask"


def _format_parameters(one: Filter) -> str:
    return ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in list_parameters(one).items())
