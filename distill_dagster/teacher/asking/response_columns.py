"""From responses to rows of a completions table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from distill_dagster.core.hashing import hash_strings, to_canonical_json
from distill_dagster.tables.schemas import COMPLETIONS
from distill_dagster.teacher.providers.exchange import Request, Response


def build_response_columns(request: Request, responses: list[Response]) -> dict[str, Any]:
    """The columns that are the same for every kind; the first response is the answer's."""
    response, *more = responses
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
    for one in more:
        row["prompt_tokens"] += one.prompt_tokens or 0
        row["completion_tokens"] += one.completion_tokens or 0
        row["cost_usd"] = _sum_or_none(row["cost_usd"], one.cost_usd)
        row["latency_s"] = _sum_or_none(row["latency_s"], one.latency_s)
        row["in_flight"] = max(row["in_flight"], one.in_flight)
    return row


def sum_attempts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The last row, with the tokens, the cost and the seconds of all."""
    last = dict(rows[-1])
    for name in ("prompt_tokens", "completion_tokens", "cost_usd", "latency_s", "requests"):
        last[name] = _sum_or_none(*(row[name] for row in rows))
    return last


def _sum_or_none(*values: float | None) -> float | None:
    """None where one of them is unknown."""
    return None if None in values else sum(value for value in values if value is not None)


def round_soft_labels(soft: dict[str, float] | None) -> list[dict[str, Any]] | None:
    """Rounded to 6 places and without labels that round to nothing: what is stored is what is hashed."""
    if soft is None:
        return None
    return [{"label": k, "prob": round(v, 6)} for k, v in soft.items() if round(v, 6) > 0]


def build_completions(rows: list[dict[str, Any]], mode: str, same: Mapping[str, str]) -> pl.DataFrame:
    """Rows as a table of completions; `mode` is that of rows without a response, `same` are columns of one value."""
    every = [row["params"] for row in rows]  # most rows share theirs; held, so that no two ids are equal
    texts: dict[tuple[int, int | None], str] = {}
    for row, params in zip(rows, every, strict=True):
        requests = row.get("requests")
        if (id(params), requests) not in texts:
            whole = params if requests is None else params | {"requests": requests}
            texts[id(params), requests] = to_canonical_json(whole)
        row["params"] = texts[id(params), requests]
        row["completion_id"] = hash_strings(row["prompt_id"], row["request_key"])[:32]
    table = pl.DataFrame(rows, schema=COMPLETIONS)
    return table.with_columns(pl.col("mode").fill_null(mode), *(pl.lit(v).alias(name) for name, v in same.items()))
