"""The stage `filtered_dataset`: from scored candidates to the dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.config import Task
from distill_dagster.core import plots
from distill_dagster.core.errors import DistillError
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dataset.human_rows import build_human_candidates
from distill_dagster.curation.dataset.invariants import check_contamination, check_dataset, check_floors, check_slices
from distill_dagster.curation.dataset.shift import build_profile, check_shift, measure_rows, read_last_good_profile
from distill_dagster.curation.dataset.teacher_counts import count_rows_by_teacher
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
from distill_dagster.pipeline.stages.soft_labels import fit_temperatures, list_temperatures
from distill_dagster.student.sentences import embed_sentences
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.schemas import SCORED
from distill_dagster.tables.validation import check_table
from distill_dagster.tasks import LabelledRow

if TYPE_CHECKING:
    from distill_dagster.curation.dataset.curate import CuratedDataset


def make_filtered_dataset(env: StageContext, partition: str | None) -> StageResult:
    """Cut the dataset from the scored candidates of all slices and the answers of people.

    Reads: SCORED of all slices, the human, golden and dev rows, the curation settings; with
        `curation.rescale_soft_labels` also the teacher's answers to dev and teacher_prior.
    Writes: DATASET, and next to it REJECTED with one drop reason per row.
    Asks a teacher: no.
    Re-runs when: a slice's candidates, a labelled row or a curation setting change.
    """
    # These load NumPy and pyarrow, which a code location does not need.
    from distill_dagster.curation.dataset.comparison_cache import ComparisonCache
    from distill_dagster.curation.dataset.curate import curate_dataset

    inputs = StageInputs(env, "filtered_dataset", partition)
    # From the start, as the dataset: of two writers the same one must win both.
    rejected = StageInputs(env, "filtered_dataset", REJECTED_ROWS)
    for source in ("slice_manifest", "human_examples", "curation_settings"):
        inputs.note_source(source)
    held_out, items = inputs.read_held_out_keys(), build_held_out_table(env.folder)
    task = env.folder.task
    about = TaskView.from_task(task)
    people = _read_human_rows(env)
    fits = fit_temperatures(inputs) if "golden_completions" in inputs.upstream else {}
    limits = env.limits or ResourceLimits()
    with limits.make_folder() as temporary:
        slices, lines = _read_slices(env, inputs, temporary)
        # People's answers are scored here and their scores are not stored: there are few of them.
        human = build_human_candidates(people, get_kind(task).answer_kind)
        candidates = pl.concat([*slices, add_scores(human, collect_task_scorers(task), about).lazy()])
        if sum(line["rows"] for line in lines) <= FILTER_BATCH_ROWS:
            # One batch is held in memory: each pass would open the files of all slices again.
            candidates = candidates.collect().lazy()
        cut = curate_dataset(
            candidates,
            held_out,
            task.label_names,
            task.curation,
            about,
            items=items,
            embed=lambda texts: embed_sentences(texts, env.models, env.workers),
            limits=limits,
            cache=ComparisonCache(env.lake.root / env.task_name / ".compared"),
            folder=temporary,
            temperatures={teacher: fit.temperature for teacher, fit in fits.items()},
            workers=env.workers,
        )
        last = env.lake.read_record(env.task_name, "filtered_dataset")
        measured = measure_rows(cut.kept, task.has_labels)
        profile = build_profile(cut.candidates, measured, cut.count_reasons())
        last_profile = read_last_good_profile(last.extra if last else None)
        checks = [
            check_table("filtered_dataset", cut.kept),
            *check_slices(lines, task.curation.compute_min_slices(len(lines))),
            check_contamination(
                cut.kept,
                held_out,
                items,
                task.curation.decontamination,
                keep_numbers=task.kind == "math",
                limits=limits,
            ),
            *check_dataset(cut.candidates, cut.kept, cut.left_out, task.label_names, task.curation.min_rows),
            *check_shift(measured, profile, last_profile, task.curation.shift),
            check_floors(cut.kept, task.curation.balance),
        ]
        extra: dict[str, Any] = {"reasons": cut.count_reasons(), "candidates": cut.candidates}
        extra |= {"profile": profile, "compared_with": last_profile}
        extra |= {"masked_rows": cut.masked} if cut.masked else {}
        extra |= {"temperatures": {teacher: fit.to_dict() for teacher, fit in fits.items()}} if fits else {}
        extra |= build_blocked_fields("filtered_dataset", checks)
        record = inputs.build_record(compute_data_version(cut.kept), cut.kept_rows, **extra)
        # The rejected rows first: a reader of the dataset finds its rejected rows next to it.
        _write_rejected_rows(env, inputs, rejected, cut)
        env.lake.write(env.task_name, cut.kept, record)
        shown = {"human_examples": len(people)} | _build_metadata(task, cut, candidates)
        shown |= {"slices": SampleTable(lines)}
        shown |= {"temperatures": SampleTable(list_temperatures(fits))} if fits else {}
    return StageResult(record, shown, checks)


def _read_human_rows(env: StageContext) -> list[LabelledRow]:
    """The rows that people answered, as far as the task mixes them in."""
    curation = env.folder.task.curation
    human = env.folder.human if curation.mix_human else []
    return human + (env.folder.examples if curation.mix_examples else [])


def _write_rejected_rows(env: StageContext, inputs: StageInputs, rejected: StageInputs, cut: CuratedDataset) -> None:
    """Write the rejected rows as a partition of the dataset, `stage_table.REJECTED_ROWS`, with the same inputs."""
    rejected.versions = inputs.versions
    version = compute_data_version(cut.left_out)
    env.lake.write(env.task_name, cut.left_out, rejected.build_record(version, cut.candidates - cut.kept_rows))


def _build_metadata(task: Task, cut: CuratedDataset, candidates: pl.LazyFrame) -> dict[str, DisplayValue]:
    reasons = cut.count_reasons()
    dropped = {reason: count for reason, count in reasons.items() if count}
    splits = dict(cut.kept.group_by("split").len().collect(engine="streaming").iter_rows())
    shown: dict[str, DisplayValue] = {
        "candidates": cut.candidates,
        "kept": cut.kept_rows,
        "rejected": cut.candidates - cut.kept_rows,
        "train": splits.get("train", 0),
        "validation": splits.get("validation", 0),
        "masked_rows": cut.masked,
        "leaks": SampleTable(cut.leaks.head(50).to_dicts()),
        "teachers": SampleTable(count_rows_by_teacher(cut.kept, cut.left_out)),
        "filters": SampleTable(list_filters(select_task_filters(task), reasons)),
        "drop_reasons": _plot_counts(dropped or reasons, "Dropped rows by reason"),
        "sample": sample_rows(cut.kept, ["answer", "split", "slice"]),
        "rejected_sample": sample_rows(cut.left_out, ["answer", "drop_reason", "drop_detail", "slice"], 10),
    }
    if task.has_labels:
        labels = cut.kept.group_by("answer").len().sort("answer").collect(engine="streaming")
        counts = {json.loads(answer): rows for answer, rows in labels.iter_rows()}
        shown["label_balance"] = _plot_counts(counts, "Kept rows by label")
    targeted = candidates.filter(pl.col("target_label").is_not_null() & pl.col("answer").is_not_null())
    pairs = targeted.group_by("answer", "target_label").len().collect(engine="streaming")
    if total := pairs["len"].sum():
        same = sum(rows for answer, label, rows in pairs.iter_rows() if json.loads(answer) == label)
        shown["answered_as_meant"] = f"{same} of {total} with a target_label"
    return shown


def _plot_counts(counts: Mapping[str, int], title: str) -> Markdown:
    return Markdown(plots.to_markdown_image(plots.plot_counts(counts, title, "rows")))


def _read_slices(
    env: StageContext, inputs: StageInputs, folder: Path
) -> tuple[list[pl.LazyFrame], list[dict[str, Any]]]:
    """The candidates of every slice, and a line about each slice.

    A slice whose candidates are stale or blocked gives its last good rows; a slice without any gives nothing.

    Raises:
        DistillError: no slice gives anything.
    """
    frames: list[pl.LazyFrame] = []
    lines: list[dict[str, Any]] = []
    state = TaskState(env.folder, env.lake)
    env.lake.prefetch(env.task_name, "scored_completions", env.folder.list_slice_keys())
    for key in env.folder.list_slice_keys():
        good = inputs.scan_last_good("scored_completions", SCORED, key, folder)
        stale = [
            status for status in (state.get_status(stage, key) for stage in SLICE_STAGES) if status.state != "fresh"
        ]
        latest = state.read_record("scored_completions", key)
        line: dict[str, Any] = {"slice": key, "rows": good[1].rows if good else 0, "gives": "its rows", "why": ""}
        if good is None:
            line["gives"] = "nothing"
        elif stale or (latest is not None and latest.extra.get("blocked")):
            line["gives"] = "its last good rows"
        if line["gives"] != "its rows":
            line["why"] = f"{stale[0].name}: {'; '.join(stale[0].why)}"[:300] if stale else "did not pass its checks"
        lines.append(line)
        frames += [] if good is None else [scores.fill_missing_scores(env, *good)]
    if not frames:
        raise DistillError(
            f"No slice of {env.task_name} has scored completions yet. Run `distill run {env.task_name}`."
        )
    return frames, lines


def list_filters(filters: Sequence[Filter], counts: Mapping[str, int]) -> list[dict[str, Any]]:
    """The filters and steps in the order of application, with their parameters and the number of rows each dropped.

    Args:
        counts: rows by drop reason, as the record of the dataset keeps them; empty before there is one.
    """
    lines = [(each.name, each.reason, _format_parameters(each), _is_masking(each)) for each in filters]
    lines += [(name, name, "", False) for name in STEP_REASONS]
    return [
        {
            "order": number,
            "filter": name,
            "drop_reason": "(masks)" if masks else reason,
            "parameters": parameters,
            "dropped": counts.get(reason),
        }
        for number, (name, reason, parameters, masks) in enumerate(lines, start=1)
    ]


def _is_masking(each: Filter) -> bool:
    return isinstance(each, PrivateDataFilter) and each.action == "mask"


def _format_parameters(each: Filter) -> str:
    parameters = list_parameters(each)
    return ", ".join(f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in parameters.items())
