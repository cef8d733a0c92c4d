"""A row's whole story: what was asked and answered, its scores, what dropped it, and where it went."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distill_dagster.core.errors import DistillError
from distill_dagster.curation.filters import list_parameters, select_task_filters
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


def trace_prompt(folder: TaskFolder, lake: Lake, prefix: str) -> dict[str, Any]:
    """The story of the prompt whose id begins with `prefix`, as one JSON object. Runs nothing.

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
    story: dict[str, Any] = {"task": task, "prompt_id": id_}
    story["prompt"] = format_messages(messages) if messages else None
    story["slices"] = [{name: value for name, value in row.items() if name != "messages"} for row in prompts]
    if held_out:
        story["held_out"] = "golden or dev: scored, never trained on"
        story["completions"] = [_pick_fields(row, _COMPLETION_FIELDS) for row in held_out]
    story["kept"] = [_format_kept_row(row) for row in kept]
    story["dropped"] = [_format_dropped_row(row) for row in dropped]
    story["representative"] = next((row["cluster_id"] for row in dropped if row.get("cluster_id")), None)
    story["duplicates"] = _find_duplicates(rejected, id_) if kept else []
    state = TaskState(folder, lake).status("filtered_dataset")
    story["dataset"] = {"state": state.state, "why": list(state.why)}
    if state.record is not None:
        story["dataset"] |= {"version": state.record.data_version, "made": state.record.created_at}
    return story


def _find_prompt_id(folder: TaskFolder, lake: Lake, prefix: str) -> str:
    """The one id that begins so."""
    if len(prefix) < MIN_PREFIX_CHARS or not set(prefix) <= set("0123456789abcdef"):
        raise DistillError(
            f"{prefix!r} is no beginning of a prompt id: {MIN_PREFIX_CHARS} or more of the digits 0 to 9 and a to f, as "  # noqa: E501
            f"`distill filters {folder.name} --dropped REASON` shows them."
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
            f"No prompt of {folder.name} that was made has an id beginning with {prefix!r}. Run `distill status "
            f"{folder.name}` to see what was made."
        )
    if len(ids) > 1:
        raise DistillError(f"{len(ids)} prompts begin with {prefix!r}: {', '.join(sorted(ids)[:10])}. Give more of it.")
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
    """What one slice has of a prompt."""
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
    """The rows that were dropped since this one stands for them."""
    if rejected is None:
        return []
    if "cluster_id" not in rejected.collect_schema().names():  # written before there were clusters
        return []
    return (
        rejected.filter(pl.col("cluster_id") == id_)
        .select("prompt_id", "slice", "answer", "teacher")
        .sort(pl.all())
        .collect()
        .to_dicts()
    )


def list_dropped_rows(lake: Lake, task: str, reason: str, limit: int) -> list[dict[str, Any]]:
    """Some of the rows that were dropped with a reason: id, slice, detail and text, in the order of their ids.

    Raises:
        DistillError: there are none.
    """
    frame = _scan_table(lake, task, "filtered_dataset", REJECTED_ROWS)
    reasons = (
        frame.select("drop_reason").unique().collect()["drop_reason"].sort().to_list() if frame is not None else []
    )
    if frame is None or reason not in reasons:
        raise DistillError(
            f"No row was dropped with the reason {reason!r}; reasons are {', '.join(reasons) or 'none'}."
        )
    names = ("prompt_id", "slice", "drop_detail", user_text_expr().alias("text"))
    return frame.filter(pl.col("drop_reason") == reason).select(*names).head(limit).collect().to_dicts()


def print_prompt_history(story: dict[str, Any], folder: TaskFolder, out: Console) -> None:
    """The story for people."""
    out.print(f"[bold]{story['prompt_id']}[/bold] of {escape(folder.name)}")
    if story["prompt"]:
        out.print(escape(_shorten(story["prompt"], 600)), soft_wrap=True)
    if "held_out" in story:
        out.print(f"[yellow]{escape(story['held_out'])}[/yellow]")
    for one in story["slices"]:
        _print_slice(one, out)
    if story.get("completions"):
        _print_completions(story["completions"], out)
    for line in _format_outcome(story, folder):
        out.print(line, soft_wrap=True)


def _print_slice(one: dict[str, Any], out: Console) -> None:
    facts = [f"origin {one['origin']}"]
    names = ("target_label", "reference", "axes", "parent_prompt_id", "source")
    facts += [f"{name} {one[name]}" for name in names if name in one]
    out.print(f"\n[bold]slice {escape(one['slice'])}[/bold]: {escape(', '.join(facts))}", soft_wrap=True)
    _print_completions(one["completions"], out)
    candidate = one["candidate"]
    if candidate is None:
        out.print("not scored yet")
        return
    out.print(f"candidate: {escape(_shorten(str(candidate.get('answer')), 300))}", soft_wrap=True)
    if candidate.get("reasoning"):
        out.print(f"reasoning: {escape(_shorten(candidate['reasoning'], 400))}", soft_wrap=True)
    figures = [n for n in ("agreement", "confidence", "teacher_agreement", "judge_score", "words") if n in candidate]
    values = [(name, candidate[name]) for name in figures] + list(candidate["scores"].items())
    out.print(
        "scores: " + escape(", ".join(f"{name} {_format_value(value)}" for name, value in values)), soft_wrap=True
    )


def _print_completions(samples: list[dict[str, Any]], out: Console) -> None:
    if not samples:
        out.print("no completion yet")
        return
    table = Table("teacher", "sample", "status", "answer", "finish", "tokens", "USD")
    for one in samples:
        said = one.get("answer") or one.get("error") or one.get("raw_text") or ""
        tokens = f"{one.get('prompt_tokens', '?')} + {one.get('completion_tokens', '?')}"
        usd = f"{one['cost_usd']:.6f}" if "cost_usd" in one else "unknown"
        cells = (one["teacher"], one["sample_index"], one["status"], _shorten(said, 80), one.get("finish_reason", ""))
        table.add_row(*(escape(str(cell)) for cell in cells), tokens, usd)
    out.print(table)


def _format_outcome(story: dict[str, Any], folder: TaskFolder) -> Iterator[str]:
    state = story["dataset"]
    yield ""
    if state["state"] in ("missing", "waiting"):
        yield f"The dataset was not made yet. `distill run {escape(folder.name)}` makes it."
        return
    parameters = {each.reason: list_parameters(each) for each in select_task_filters(folder.task)}
    for one in story["kept"]:
        weight = f", weight {one['weight']:g}" if one["weight"] != 1 else ""
        who = escape(one["teacher"]) if "teacher" in one else "a person"
        yield f"[green]kept[/green] in {one['split']}, answered by {who} (slice {escape(one['slice'])}){weight}"
        yield f"learned as: {escape(_shorten(one['target'], 300))}"
    for one in story["dropped"]:
        reason, detail = one["drop_reason"], one.get("drop_detail")
        figures = f": {escape(detail)}" if detail else ""
        limits = ", ".join(f"{name} {json.dumps(value)}" for name, value in parameters.get(reason, {}).items())
        set_ = f" [dim]({escape(_shorten(limits, 200))})[/dim]" if limits else ""
        yield f"[red]dropped[/red] by {escape(reason)}{figures} (slice {escape(one['slice'])}){set_}"
    if story["representative"]:
        yield f"its text is kept as {story['representative']}"
    if story["duplicates"]:
        ids = ", ".join(f"{one['prompt_id'][:12]} ({escape(one['slice'])})" for one in story["duplicates"][:10])
        yield f"stands for {len(story['duplicates'])} duplicates: {ids}"
    if not story["kept"] and not story["dropped"] and "held_out" not in story:
        yield "It was no candidate when the dataset was made."
    if state["state"] != "fresh":
        yield f"[yellow]The dataset is {state['state']}[/yellow]: {escape('; '.join(state['why'][:3]))}"


def _format_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else _shorten(str(value), 60)


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
