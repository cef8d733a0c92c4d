"""Kept rows with personal data or secrets replaced by what they are, where the task masks instead of dropping."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from distill_dagster.config.answers import LABEL_KINDS
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.curation.filters import Filter
from distill_dagster.curation.filters.private import Pii, Secrets
from distill_dagster.curation.scores.private import SECRET_KIND, mask_long_text
from distill_dagster.curation.task_view import TaskView


def needs_mask_expr(filters: Sequence[Filter]) -> pl.Expr:
    """Whether a scored row's texts are to be masked."""
    return pl.any_horizontal(pl.lit(False), *(one.found().fill_null(False) for one in _select_masking(filters)))


def _select_masking(filters: Sequence[Filter]) -> list[Secrets | Pii]:
    return [one for one in filters if isinstance(one, Secrets | Pii) and one.masks()]


def mask_rows(kept: pl.DataFrame, filters: Sequence[Filter], about: TaskView) -> pl.DataFrame:
    """The rows with masked prompts, reasoning and answers, where the column `masks` (`to_mask`) says so.

    Labels, numbers and the names of tools are not touched; a soft label that is a masked answer is left out. The id
    stays that of the prompt as it came.
    """
    masking = _select_masking(filters)
    kinds = {kind for one in masking for kind in (one.kinds if isinstance(one, Pii) else (SECRET_KIND,))}
    hit = kept["masks"]
    rows = hit.arg_true()
    if not len(rows):
        return kept
    columns = ["messages", "answer", "reasoning", "soft_labels"]
    new = [_mask_row(row, frozenset(kinds), about) for row in kept[rows].select(columns).iter_rows(named=True)]
    changed = {name: pl.Series(name, [row[name] for row in new], dtype=kept.schema[name]) for name in columns}
    marks = pl.Series("row", range(kept.height), dtype=pl.UInt32)
    masks = pl.DataFrame({"row": pl.Series(rows, dtype=pl.UInt32), **changed})
    joined = kept.with_columns(marks).join(masks, on="row", how="left", maintain_order="left", suffix=" masked")
    found = [pl.when(pl.lit(hit)).then(pl.col(f"{n} masked")).otherwise(pl.col(n)).alias(n) for n in columns]
    return joined.with_columns(found).select(kept.columns)


def _mask_row(row: dict[str, Any], kinds: frozenset[str], about: TaskView) -> dict[str, Any]:
    answer = row["answer"]
    if about.kind not in LABEL_KINDS and answer is not None:
        answer = to_canonical_json(_mask_json(json.loads(answer), kinds))
    return {
        "messages": [turn | {"content": _mask_text(turn["content"], kinds)} for turn in row["messages"]],
        "answer": answer,
        "reasoning": _mask_text(row["reasoning"], kinds),
        "soft_labels": row["soft_labels"] if about.kind in LABEL_KINDS or answer == row["answer"] else None,
    }


def _mask_text(text: str | None, kinds: frozenset[str]) -> str | None:
    return None if text is None else mask_long_text(text, kinds)


def _mask_json(value: Any, kinds: frozenset[str]) -> Any:
    """A JSON value with its texts masked, keys apart."""
    if isinstance(value, str):
        return mask_long_text(value, kinds)
    if isinstance(value, list):
        return [_mask_json(one, kinds) for one in value]
    if isinstance(value, dict):
        return {name: one if name == "name" else _mask_json(one, kinds) for name, one in value.items()}
    return value
