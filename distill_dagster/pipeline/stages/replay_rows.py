"""The stage that takes rows of earlier datasets, which students replay next to the dataset of today."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

from distill_dagster.config import DataMixSpec, Task
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dataset.data_mix import choose_replayed_rows
from distill_dagster.curation.dataset.mask import mask_rows, needs_mask_expr
from distill_dagster.curation.filters import filter_rows, select_task_filters
from distill_dagster.curation.filters.private_data_filter import PrivateDataFilter
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import append_answers, build_targets, build_text_keys, extract_user_texts
from distill_dagster.kinds import Kind, Question, get_kind, is_refusal
from distill_dagster.kinds.base import InvalidAnswerError
from distill_dagster.pipeline.stages.context import (
    SampleTable,
    StageContext,
    StageInputs,
    StageResult,
    build_held_out_table,
)
from distill_dagster.tables.schemas import DATASET, REPLAY_ROWS, conform_to_schema
from distill_dagster.tables.validation import check_table
from distill_dagster.tasks.kept_datasets import read_kept_dataset


def read_replayed_rows(inputs: StageInputs, mix: DataMixSpec, rows: int, seed: int) -> pl.DataFrame:
    """The rows of an earlier dataset that a student learns from next to `rows` others; none without `data.replay`."""
    if mix.replay is None:
        return pl.DataFrame(schema=DATASET)
    kept = inputs.read_table("replay_rows", REPLAY_ROWS).filter(pl.col("dataset") == mix.replay.dataset)
    return choose_replayed_rows(kept.drop("dataset"), mix.replay.share, rows, seed)


def make_replay_rows(env: StageContext, partition: str | None) -> StageResult:
    """Take the training rows of kept datasets that the dataset of today does not have.

    The task may have changed since then. Rows that repeat golden or dev are left out, and so are answers with a label
    that is gone or of another form. Probabilities that name such a label are removed. Filters of private data drop
    rows or mask texts as in the dataset of today; no other filter reads these rows.

    Reads: the kept datasets that students name, filtered_dataset, golden.jsonl and dev.jsonl, the curation settings.
    Writes: REPLAY_ROWS.
    Asks a teacher: no.
    Re-runs when: one of these changes.
    """
    inputs = StageInputs(env, "replay_rows", partition)
    for source in ("kept_datasets", "curation_settings"):
        inputs.note_source(source)
    held_out = inputs.read_held_out_keys()
    dataset = inputs.read_table("filtered_dataset", DATASET)
    frames, lines = [], []
    for name in env.folder.task.list_replayed_datasets():
        rows, line = _select_rows(env, read_kept_dataset(env.folder.path, name), dataset, held_out)
        frames.append(rows.with_columns(dataset=pl.lit(name)))
        lines.append({"dataset": name, **line})
    frame = conform_to_schema(pl.concat(frames), REPLAY_ROWS, ("dataset", "prompt_id", "slice"))
    checks = [check_table("replay_rows", frame)]
    record = inputs.write_table(frame, checks)
    return StageResult(record, {"rows": frame.height, "datasets": SampleTable(lines)}, checks)


def _select_rows(
    env: StageContext, kept: pl.DataFrame, dataset: pl.DataFrame, held_out: set[str]
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """The rows to replay, and how many were left out for which reason."""
    task = env.folder.task
    train = kept.filter(pl.col("split") == "train")
    prompts = extract_user_texts(train["messages"])
    keys = build_text_keys(prompts)
    today = build_text_keys(extract_user_texts(dataset["messages"])).unique()
    known = train["prompt_id"].is_in(dataset["prompt_id"].implode()) | keys.is_in(today.implode())
    leaked = keys.is_in(pl.Series(sorted(held_out), dtype=pl.String).implode()) | _find_leaks(env, train)
    kind = get_kind(task)
    fits = [_fits_kind(kind, *row) for row in zip(train["answer"], prompts, strict=True)]
    unfit = ~pl.Series(fits, dtype=pl.Boolean)
    reasons = {
        "in_the_dataset": known,
        "repeats_golden_or_dev": leaked & ~known,
        "label_is_gone" if task.has_labels else "answer_is_invalid": unfit & ~known & ~leaked,
    }
    counts = {reason: int(chosen.sum()) for reason, chosen in reasons.items()}
    fitting = train.filter(~(known | leaked | unfit))
    rows = _remove_private_data(task, fitting)
    counts["private_data"] = fitting.height - rows.height
    if task.has_labels:
        named = pl.col("soft_labels").list.eval(pl.element().struct.field("label").is_in(task.label_names))
        rows = rows.with_columns(soft_labels=pl.when(named.list.all()).then("soft_labels"))
    return rows, {"rows": train.height, "replayable": rows.height, **counts}


def _fits_kind(kind: Kind, answer: str, prompt: str) -> bool:
    """Whether an answer has the form that the task asks for today: its labels, its schema, its tools."""
    value = json.loads(answer)
    if kind.has_labels:
        return value in kind.task.label_names
    if is_refusal(value):
        return True
    try:
        kind.canonicalize(value, Question(prompt))
    except InvalidAnswerError:
        return False
    return True


def _remove_private_data(task: Task, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows without those that today's filters of private data drop, and with what they mask."""
    filters = [one for one in select_task_filters(task) if isinstance(one, PrivateDataFilter)]
    if not filters or rows.is_empty():
        return rows
    view, masks = TaskView.from_task(task), needs_mask_expr(filters)
    found = pl.concat(batch.select("drop_reason", masks=masks) for batch in filter_rows(rows, filters, view))
    marked = rows.with_columns(found["masks"]).filter(found["drop_reason"].is_null())
    prompts = pl.col("messages").list.head(pl.col("messages").list.len() - 1)
    masked = mask_rows(marked.filter("masks").with_columns(prompts), filters, view)
    masked = masked.with_columns(messages=append_answers(masked["messages"], build_targets(masked, view.matcher)))
    return pl.concat([marked.filter(~pl.col("masks")), masked]).drop("masks")


def _find_leaks(env: StageContext, train: pl.DataFrame) -> pl.Series:
    """Whether each row contains a golden or dev row, or nearly equals one."""
    from distill_dagster.curation.dedup.decontaminate import find_contamination
    from distill_dagster.curation.dedup.folding import MinHashScheme

    task, items = env.folder.task, build_held_out_table(env.folder)
    spec = task.curation.decontamination
    if spec is None or items.is_empty() or train.is_empty():
        return pl.Series([False]).new_from_index(0, train.height)
    texts = train.select("prompt_id", extract_user_texts(train["messages"]).alias("text"))
    scheme = MinHashScheme(keep_numbers=task.kind == "math")
    limits = env.limits or ResourceLimits()
    found = find_contamination(
        texts, items, text="text", id="prompt_id", scheme=scheme, limits=limits, **spec.model_dump()
    )
    return train["prompt_id"].is_in(found.ids.implode())
