"""Mask personal data and secrets in kept rows, for filters with `action: mask`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import polars as pl

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.curation.filters import Filter
from distill_dagster.curation.filters.pii import Pii
from distill_dagster.curation.filters.private_data_filter import PrivateDataFilter
from distill_dagster.curation.scores.personal_data import SECRET_KIND
from distill_dagster.curation.task_view import TaskView
from distill_dagster.intake.masking import mask_json, mask_text

MaskText = Callable[[str], str]


def needs_mask_expr(filters: Sequence[Filter]) -> pl.Expr:
    """Whether the texts of a scored row are to be masked."""
    return pl.any_horizontal(pl.lit(False), *(one.found_expr().fill_null(False) for one in _select_masking(filters)))


def _select_masking(filters: Sequence[Filter]) -> list[PrivateDataFilter]:
    return [one for one in filters if isinstance(one, PrivateDataFilter) and one.action == "mask"]


def mask_rows(kept: pl.DataFrame, filters: Sequence[Filter], task: TaskView) -> pl.DataFrame:
    """Mask prompts, reasoning and answers of the rows whose column `masks` (`needs_mask_expr`) is true.

    Every text is masked but labels and the names of tools. A number is masked where it is personal data by itself.
    Soft labels leave a row whose answer changed. `prompt_id` stays that of the prompt as it came.
    """
    masked = kept["masks"].arg_true()
    if not len(masked):
        return kept
    mask = _build_mask(_select_masking(filters), task)
    columns = ["messages", "answer", "reasoning", "soft_labels"]
    rows = [_mask_row(row, mask, task.kind) for row in kept[masked].select(columns).iter_rows(named=True)]
    series = [pl.Series(name, [row[name] for row in rows], dtype=kept.schema[name]) for name in columns]
    new = pl.DataFrame(series).with_columns(masked.alias("row"))
    places = kept.with_row_index("row").join(new, on="row", how="left", maintain_order="left", suffix=" masked")
    changed = [pl.when("masks").then(pl.col(f"{name} masked")).otherwise(pl.col(name)).alias(name) for name in columns]
    return places.with_columns(changed).select(kept.columns)


def mask_completion(
    answer: str, reasoning: str | None, filters: Sequence[Filter], task: TaskView
) -> tuple[str, str | None]:
    """Mask answer and reasoning of a completion that no filter has seen, by the kinds of every filter of private data.

    Filters that drop rows count as well: a rejected answer may contain what no kept row does.
    """
    private = [one for one in filters if isinstance(one, PrivateDataFilter)]
    if not private:
        return answer, reasoning
    row: dict[str, Any] = {"messages": [], "answer": answer, "reasoning": reasoning, "soft_labels": None}
    masked = _mask_row(row, _build_mask(private, task), task.kind)
    return masked["answer"], masked["reasoning"]


def _build_mask(filters: Sequence[PrivateDataFilter], task: TaskView) -> MaskText:
    kinds = {kind for one in filters for kind in (one.kinds if isinstance(one, Pii) else (SECRET_KIND,))}
    return lambda text: mask_text(text, task.phone_regions, kinds).text


def _mask_row(row: dict[str, Any], mask: MaskText, kind: str) -> dict[str, Any]:
    answer = row["answer"]
    if kind not in LABEL_KINDS and answer is not None:
        value = json.loads(answer)
        answer = to_canonical_json(_mask_calls(value, mask) if kind == "tool_call" else mask_json(value, mask))
    return {
        "messages": [_mask_turn(turn, mask) for turn in row["messages"]],
        "answer": answer,
        "reasoning": None if row["reasoning"] is None else mask(row["reasoning"]),
        "soft_labels": row["soft_labels"] if answer == row["answer"] else None,
    }


def _mask_turn(turn: dict[str, Any], mask: MaskText) -> dict[str, Any]:
    content, calls = turn["content"], turn.get("tool_calls")
    masked: dict[str, Any] = {"content": None if content is None else mask(content)}
    if calls is not None:
        masked["tool_calls"] = to_canonical_json(_mask_calls(json.loads(calls), mask))
    return turn | masked


def _mask_calls(calls: Any, mask: MaskText) -> Any:
    """Tool calls with everything masked but the names of the tools."""
    if not isinstance(calls, list):
        return mask_json(calls, mask)
    return [
        {key: value if key == "name" else mask_json(value, mask) for key, value in call.items()}
        if isinstance(call, dict)
        else mask_json(call, mask)
        for call in calls
    ]
