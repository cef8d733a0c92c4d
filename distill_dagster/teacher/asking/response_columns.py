"""From responses to rows of a completions table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from distill_dagster.core.hashing import hash_strings, to_canonical_json
from distill_dagster.tables.schemas import COMPLETIONS, conform_to_schema
from distill_dagster.teacher.providers.exchange import Request, Response

COMPLETIONS_ORDER = ("prompt_id", "teacher", "sample_index")
CHUNK_ROWS = 500
"""Rows that become columns together. Columns take a fraction of the memory of Python rows."""


class CompletionRows:
    """Collects rows and builds a completions table from them."""

    def __init__(self, mode: str, constants: Mapping[str, str]) -> None:
        """`mode` is that of rows without a response; `constants` are columns with one value."""
        self._mode, self._constants = mode, constants
        self._rows: list[dict[str, Any]] = []
        self._tables: list[pl.DataFrame] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add one row: the columns of its response, `prompt_id`, `slice` and `sample_index`."""
        self._rows.append(row)
        if len(self._rows) == CHUNK_ROWS:
            self._tables.append(self._build_table())
            self._rows.clear()

    def build(self) -> pl.DataFrame:
        """The table of all rows, sorted."""
        return conform_to_schema(pl.concat([*self._tables, self._build_table()]), COMPLETIONS, COMPLETIONS_ORDER)

    def _build_table(self) -> pl.DataFrame:
        # Most rows share their `params`. The list keeps these objects alive, so that their ids stay unique.
        shared = [row["params"] for row in self._rows]
        texts: dict[tuple[int, int | None], str] = {}
        for row, params in zip(self._rows, shared, strict=True):
            requests = row.get("requests")
            if (id(params), requests) not in texts:
                texts[id(params), requests] = to_canonical_json(
                    params if requests is None else params | {"requests": requests}
                )
            row["params"] = texts[id(params), requests]
            row["completion_id"] = hash_strings(row["prompt_id"], row["request_key"])[:32]
        constants = [pl.lit(value).alias(name) for name, value in self._constants.items()]
        try:
            table = pl.DataFrame(self._rows, schema=COMPLETIONS)
        except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
            table = pl.DataFrame([_replace_unfit_row(row) for row in self._rows], schema=COMPLETIONS)
        return table.with_columns(pl.col("mode").fill_null(self._mode), *constants)


def _replace_unfit_row(row: dict[str, Any]) -> dict[str, Any]:
    """The row, or a failed row if one of its values does not fit the schema. One answer costs at most its own row."""
    try:
        pl.DataFrame([row], schema=COMPLETIONS)
    except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError) as error:
        kept = ("prompt_id", "slice", "sample_index", "request_key", "completion_id", "params")
        why = f"the stored answer does not fit the table of completions: {error}"
        return {name: row[name] for name in kept} | {"status": "failed", "error": why}
    return row


def build_response_columns(request: Request, responses: list[Response]) -> dict[str, Any]:
    """The columns that are the same for every kind. The first response is the answer; the others refine it."""
    response, *others = responses
    row: dict[str, Any] = {
        "request_key": request.key,
        "raw_text": response.text,
        "finish_reason": response.finish_reason,
        "prompt_tokens": response.prompt_tokens or 0,
        "completion_tokens": response.completion_tokens or 0,
        "cost_usd": response.cost_usd,
        "latency_s": response.latency_s if response.mode == "online" else None,
        "mode": response.mode,
        "model_reported": response.model_reported,
        "params": request.params,
        "requests": len(responses),
        "requested_at": response.received_at,
        "in_flight": response.in_flight,
    }
    for other in others:
        row["prompt_tokens"] += other.prompt_tokens or 0
        row["completion_tokens"] += other.completion_tokens or 0
        row["cost_usd"] = _sum_or_none(row["cost_usd"], other.cost_usd)
        row["latency_s"] = _sum_or_none(row["latency_s"], other.latency_s)
        row["in_flight"] = max(row["in_flight"], other.in_flight)
    return row


def sum_attempts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The row of the last attempt, with the tokens, cost and seconds of all attempts."""
    last = dict(rows[-1])
    for name in ("prompt_tokens", "completion_tokens", "cost_usd", "latency_s", "requests"):
        last[name] = _sum_or_none(*(row[name] for row in rows))
    return last


def _sum_or_none(*values: float | None) -> float | None:
    """The sum, or None if one value is unknown."""
    return None if None in values else sum(value for value in values if value is not None)


def round_soft_labels(shares: dict[str, float] | None) -> list[dict[str, Any]] | None:
    """Soft labels with 6 decimal places, without labels that round to 0. The stored values are the hashed ones."""
    if shares is None:
        return None
    return [{"label": label, "prob": round(share, 6)} for label, share in shares.items() if round(share, 6) > 0]
