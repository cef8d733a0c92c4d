"""Trace one prompt through the tables of a task: completions, candidate, scores, drop reason and split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.stage_table import REJECTED_ROWS
from distill_dagster.tables.lake import Lake
from distill_dagster.tables.messages import format_messages, user_text_expr
from distill_dagster.tasks import TaskFolder

_COMPLETION_FIELDS: tuple[str, ...] = (
    *("completion_id", "teacher", "sample_index", "status", "error", "answer", "reasoning", "raw_text"),
    *("finish_reason", "prompt_tokens", "completion_tokens", "cost_usd", "model_reported", "mode"),
    *("template_version", "requested_at"),
)
_CANDIDATE_FIELDS: tuple[str, ...] = (
    *("teacher", "status", "error", "answer", "reasoning", "agreement", "confidence", "teacher_agreement"),
    *("words", "judge_score", "judge_scores", "judge_reasons", "soft_labels"),
)
MIN_PREFIX_CHARS = 4
"""The least number of characters of an id that `trace_prompt` looks for."""


def trace_prompt(folder: TaskFolder, lake: Lake, prefix: str) -> dict[str, Any]:
    """The history of the prompt whose id begins with `prefix`, as one JSON object. It runs nothing.

    Raises:
        DistillError: no prompt of the task has such an id, or several have.
    """
    task, id_ = folder.name, _find_prompt_id(folder, lake, prefix)
    dataset = _scan_table(lake, task, "filtered_dataset", None)
    rejected = _scan_table(lake, task, "filtered_dataset", REJECTED_ROWS)
    kept, dropped = _find_rows(dataset, id_), _find_rows(rejected, id_)
    prompts: list[dict[str, Any]] = []
    for key in folder.list_slice_keys():
        found = _find_rows(_scan_table(lake, task, "seed_prompts", key), id_)
        prompts += [_describe_in_slice(lake, task, key, row, id_) for row in found]
    held_out = _find_rows(_scan_table(lake, task, "golden_completions", None), id_)
    messages = next((row["messages"] for row in (*prompts, *dropped) if row.get("messages")), None)
    if messages is None and kept:
        messages = kept[0]["messages"][:-1]
    history: dict[str, Any] = {"task": task, "prompt_id": id_}
    history["prompt"] = format_messages(messages) if messages else None
    history["slices"] = [{name: value for name, value in row.items() if name != "messages"} for row in prompts]
    if held_out:
        history["held_out"] = "golden or dev: scored, never trained on"
        history["completions"] = [_pick_fields(row, _COMPLETION_FIELDS) for row in held_out]
    history["kept"] = [_format_kept_row(row) for row in kept]
    history["dropped"] = [_format_dropped_row(row) for row in dropped]
    history["representative"] = next((row["cluster_id"] for row in dropped if row.get("cluster_id")), None)
    history["duplicates"] = _find_duplicates(rejected, id_) if kept else []
    state = TaskState(folder, lake).get_status("filtered_dataset")
    history["dataset"] = {"state": state.state, "why": list(state.why)}
    if state.record is not None:
        history["dataset"] |= {"version": state.record.data_version, "made": state.record.created_at}
    return history


def _find_prompt_id(folder: TaskFolder, lake: Lake, prefix: str) -> str:
    """The only prompt id that begins with `prefix`."""
    if len(prefix) < MIN_PREFIX_CHARS or not set(prefix) <= set("0123456789abcdef"):
        raise DistillError(
            f"{prefix!r} is not the beginning of a prompt id. Give {MIN_PREFIX_CHARS} or more characters of 0 to 9 and "
            f"a to f, as `distill filters {folder.name} --dropped REASON` shows them."
        )
    places: list[tuple[str, str | None]] = [("seed_prompts", key) for key in folder.list_slice_keys()]
    places += [("filtered_dataset", None), ("filtered_dataset", REJECTED_ROWS), ("golden_completions", None)]
    ids: set[str] = set()
    for asset, partition in places:
        frame = _scan_table(lake, folder.name, asset, partition)
        if frame is not None:
            ids.update(frame.filter(_has_prefix_expr(prefix)).select("prompt_id").collect()["prompt_id"])
    if not ids:
        raise DistillError(
            f"No prompt in the tables of {folder.name} has an id beginning with {prefix!r}. Run `distill status "
            f"{folder.name}` to see which tables exist."
        )
    if len(ids) > 1:
        raise DistillError(
            f"{count_noun(len(ids), 'prompt')} begin with {prefix!r}: {', '.join(sorted(ids)[:10])}. "
            "Give more characters."
        )
    return ids.pop()


def _has_prefix_expr(prefix: str) -> pl.Expr:
    return pl.col("prompt_id").str.starts_with(prefix)


def _scan_table(lake: Lake, task: str, asset: str, partition: str | None) -> pl.LazyFrame | None:
    path: Path = lake.get_path(task, asset, partition)
    return pl.scan_parquet(path) if path.is_file() else None


def _find_rows(frame: pl.LazyFrame | None, id_: str) -> list[dict[str, Any]]:
    if frame is None:
        return []
    return frame.filter(pl.col("prompt_id") == id_).collect().to_dicts()


def _describe_in_slice(lake: Lake, task: str, key: str, prompt: dict[str, Any], id_: str) -> dict[str, Any]:
    """The prompt, its completions and its candidate in one slice."""
    out = {name: prompt[name] for name in ("slice", "origin", "messages")}
    more = ("target_label", "reference", "axes", "parent_prompt_id", "source")
    out |= {name: prompt[name] for name in more if prompt[name] is not None}
    completions = _find_rows(_scan_table(lake, task, "teacher_completions", key), id_)
    out["completions"] = [_pick_fields(row, _COMPLETION_FIELDS) for row in completions]
    scored = _find_rows(_scan_table(lake, task, "scored_completions", key), id_)
    out["candidate"] = _format_candidate(scored[0]) if scored else None
    return out


def _format_candidate(row: dict[str, Any]) -> dict[str, Any]:
    scores = {name: value for name, value in (row["scores"] or {}).items() if value is not None}
    return _pick_fields(row, _CANDIDATE_FIELDS) | {"scores": scores}


def _pick_fields(row: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: row[name] for name in names if row[name] is not None}


def _format_kept_row(row: dict[str, Any]) -> dict[str, Any]:
    names = ("slice", "split", "weight", "answer", "reasoning", "teacher", "completion_ids")
    return _pick_fields(row, names) | {"target": row["messages"][-1]["content"]}


def _format_dropped_row(row: dict[str, Any]) -> dict[str, Any]:
    names = ("slice", "drop_reason", "drop_detail", "answer", "teacher", "agreement", "confidence")
    return _pick_fields(row, names)


def _find_duplicates(rejected: pl.LazyFrame | None, id_: str) -> list[dict[str, Any]]:
    """The rows that were dropped as duplicates of this one."""
    if rejected is None:
        return []
    return (
        rejected.filter(pl.col("cluster_id") == id_)
        .select("prompt_id", "slice", "answer", "teacher")
        .sort(pl.all())
        .collect()
        .to_dicts()
    )


def list_dropped_rows(lake: Lake, task: str, reason: str, limit: int) -> list[dict[str, Any]]:
    """The first rows that were dropped with a reason: id, slice, detail and text, in the order of their ids.

    Raises:
        DistillError: there are none.
    """
    frame = _scan_table(lake, task, "filtered_dataset", REJECTED_ROWS)
    reasons = (
        frame.select("drop_reason").unique().collect()["drop_reason"].sort().to_list() if frame is not None else []
    )
    if frame is None or reason not in reasons:
        raise DistillError(
            f"No row was dropped with the reason {reason!r}. Reasons with rows: {', '.join(reasons) or 'none'}."
        )
    names = ("prompt_id", "slice", "drop_detail", user_text_expr().alias("text"))
    return frame.filter(pl.col("drop_reason") == reason).select(*names).head(limit).collect().to_dicts()
