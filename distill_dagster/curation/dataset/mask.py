"""Kept rows with personal data or secrets replaced by what they are, where the task masks instead of dropping."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import polars as pl

from distill_dagster.core.hashing import canonical_json
from distill_dagster.curation.filters import Filter
from distill_dagster.curation.filters.private import Pii, Secrets
from distill_dagster.curation.scores.private import SECRET, masked
from distill_dagster.curation.task_view import LABELLED, About


def to_mask(filters: Sequence[Filter]) -> pl.Expr:
    """Whether a scored row's texts are to be masked."""
    return pl.any_horizontal(pl.lit(False), *(one.found().fill_null(False) for one in _masking(filters)))


def _masking(filters: Sequence[Filter]) -> list[Secrets | Pii]:
    return [one for one in filters if isinstance(one, Secrets | Pii) and one.masks()]


def masked_rows(kept: pl.DataFrame, filters: Sequence[Filter], about: About) -> pl.DataFrame:
    """The rows with masked prompts, reasoning and answers, where the column `masks` (`to_mask`) says so.

    Labels, numbers and the names of tools are not touched; a soft label that is a masked answer is left out. The id
    stays that of the prompt as it came.
    """
    masking = _masking(filters)
    kinds = {kind for one in masking for kind in (one.kinds if isinstance(one, Pii) else (SECRET,))}
    hit = kept["masks"]
    rows = hit.arg_true()
    if not len(rows):
        return kept
    columns = ["messages", "answer", "reasoning", "soft_labels"]
    new = [_row(row, frozenset(kinds), about) for row in kept[rows].select(columns).iter_rows(named=True)]
    changed = {name: pl.Series(name, [row[name] for row in new], dtype=kept.schema[name]) for name in columns}
    marks = pl.Series("row", range(kept.height), dtype=pl.UInt32)
    masks = pl.DataFrame({"row": pl.Series(rows, dtype=pl.UInt32), **changed})
    joined = kept.with_columns(marks).join(masks, on="row", how="left", maintain_order="left", suffix=" masked")
    found = [pl.when(pl.lit(hit)).then(pl.col(f"{n} masked")).otherwise(pl.col(n)).alias(n) for n in columns]
    return joined.with_columns(found).select(kept.columns)


def _row(row: dict[str, Any], kinds: frozenset[str], about: About) -> dict[str, Any]:
    answer = row["answer"]
    if about.kind not in LABELLED and answer is not None:
        answer = canonical_json(_each_text(json.loads(answer), kinds))
    return {
        "messages": [turn | {"content": _text(turn["content"], kinds)} for turn in row["messages"]],
        "answer": answer,
        "reasoning": _text(row["reasoning"], kinds),
        "soft_labels": row["soft_labels"] if about.kind in LABELLED or answer == row["answer"] else None,
    }


def _text(text: str | None, kinds: frozenset[str]) -> str | None:
    return None if text is None else masked(text, kinds)


def _each_text(value: Any, kinds: frozenset[str]) -> Any:
    """A JSON value with its texts masked, keys apart."""
    if isinstance(value, str):
        return masked(value, kinds)
    if isinstance(value, list):
        return [_each_text(one, kinds) for one in value]
    if isinstance(value, dict):
        return {name: one if name == "name" else _each_text(one, kinds) for name, one in value.items()}
    return value
