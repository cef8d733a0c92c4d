"""Print the history of a prompt for people."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rich.markup import escape

from distill_dagster.cli.console import build_table, out, print_table
from distill_dagster.core.formatting import count_noun
from distill_dagster.curation.filters import list_parameters, select_task_filters
from distill_dagster.tasks import TaskFolder


def print_prompt_history(history: dict[str, Any], folder: TaskFolder) -> None:
    """Print the result of `row_history.trace_prompt`."""
    out.print(f"[bold]{history['prompt_id']}[/bold] of {escape(folder.name)}")
    if history["prompt"]:
        out.print(escape(_shorten(history["prompt"], 600)), soft_wrap=True)
    if "held_out" in history:
        out.print(f"[yellow]{escape(history['held_out'])}[/yellow]")
    for entry in history["slices"]:
        _print_slice(entry)
    if history.get("completions"):
        _print_completions(history["completions"])
    for line in _format_result(history, folder):
        out.print(line, soft_wrap=True)


def _print_slice(entry: dict[str, Any]) -> None:
    facts = [f"origin {entry['origin']}"]
    names = ("target_label", "reference", "axes", "parent_prompt_id", "source")
    facts += [f"{name} {entry[name]}" for name in names if name in entry]
    out.print(f"\n[bold]slice {escape(entry['slice'])}[/bold]: {escape(', '.join(facts))}", soft_wrap=True)
    _print_completions(entry["completions"])
    candidate = entry["candidate"]
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


def _print_completions(samples: list[dict[str, Any]]) -> None:
    if not samples:
        out.print("no completion yet")
        return
    table = build_table("teacher", "sample", "status", "answer", "finish", "tokens", "USD")
    for row in samples:
        text = row.get("answer") or row.get("error") or row.get("raw_text") or ""
        tokens = f"{row.get('prompt_tokens', '?')} + {row.get('completion_tokens', '?')}"
        usd = f"{row['cost_usd']:.6f}" if "cost_usd" in row else "unknown"
        cells = (row["teacher"], row["sample_index"], row["status"], _shorten(text, 80), row.get("finish_reason", ""))
        table.add_row(*(escape(str(cell)) for cell in cells), tokens, usd)
    print_table(table)


def _format_result(history: dict[str, Any], folder: TaskFolder) -> Iterator[str]:
    state = history["dataset"]
    yield ""
    if state["state"] in ("missing", "waiting"):
        yield f"There is no dataset yet. Run `distill run {escape(folder.name)}`."
        return
    parameters = {rule.reason: list_parameters(rule) for rule in select_task_filters(folder.task)}
    for row in history["kept"]:
        weight = f", weight {row['weight']:g}" if row["weight"] != 1 else ""
        who = escape(row["teacher"]) if "teacher" in row else "a person"
        yield f"[green]kept[/green] in {row['split']}, answered by {who} (slice {escape(row['slice'])}){weight}"
        yield f"target: {escape(_shorten(row['target'], 300))}"
    for row in history["dropped"]:
        reason, detail = row["drop_reason"], row.get("drop_detail")
        figures = f": {escape(detail)}" if detail else ""
        limits = ", ".join(f"{name} {json.dumps(value)}" for name, value in parameters.get(reason, {}).items())
        shown = f" [dim]({escape(_shorten(limits, 200))})[/dim]" if limits else ""
        yield f"[red]dropped[/red] by {escape(reason)}{figures} (slice {escape(row['slice'])}){shown}"
    if history["representative"]:
        yield f"its text is kept as {history['representative']}"
    if history["duplicates"]:
        ids = ", ".join(f"{row['prompt_id'][:12]} ({escape(row['slice'])})" for row in history["duplicates"][:10])
        yield f"represents {count_noun(len(history['duplicates']), 'duplicate')}: {ids}"
    if not history["kept"] and not history["dropped"] and "held_out" not in history:
        yield "It was not a candidate when the dataset was made."
    if state["state"] != "fresh":
        yield f"[yellow]The dataset is {state['state']}[/yellow]: {escape('; '.join(state['why'][:3]))}"


def _format_value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else _shorten(str(value), 60)


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
