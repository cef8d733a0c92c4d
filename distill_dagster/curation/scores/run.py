"""Run scorers over candidates, and reuse scores of an earlier run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import polars as pl

from distill_dagster.core.workers import IN_PROCESS, Workers, map_parts
from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import add_text_columns
from distill_dagster.tables.schemas import SCORES

SCORING_BATCH_ROWS = 50_000


def get_scorer_versions(scorers: Sequence[Scorer]) -> dict[str, str]:
    """The version of each scorer by its name, as a record keeps them."""
    return {scorer.name: scorer.version for scorer in scorers}


def bind_scorer(scorer: Scorer, task: TaskView) -> Scorer:
    """Add the task settings that a scorer depends on to its version.

    Then a change of these settings computes the scores again, as a new version of the scorer does.
    """
    if not scorer.uses_phone_regions:
        return scorer
    return replace(scorer, version=f"{scorer.version} {','.join(sorted(task.phone_regions))}".strip())


def add_scores(
    rows: pl.DataFrame,
    scorers: Sequence[Scorer],
    task: TaskView,
    before: pl.DataFrame | None = None,
    before_versions: Mapping[str, str] | None = None,
    workers: Workers = IN_PROCESS,
) -> pl.DataFrame:
    """Return the rows with the column `scores`, computed by these scorers; every other score is null.

    Args:
        rows: candidates (schema SCORED), which may also have `finish_reason` and `completion_tokens`.
        before: candidates that have scores already. A row with the same content keeps the scores of every scorer whose
            version in `before_versions` is the same.
        workers: compute the batches of `SCORING_BATCH_ROWS`.
    """
    if not scorers:
        return rows.with_columns(pl.lit(None, dtype=SCORES).alias("scores"))
    known = before_versions or {}
    unchanged = [scorer for scorer in scorers if scorer.reads_rows_only and known.get(scorer.name) == scorer.version]
    if before is None or not unchanged:
        return _add_scores_column(rows, _run_scorers(rows, scorers, task, workers))
    keys = ["prompt_id", "answer", "reasoning", "reference"]
    stored = before.select(*keys, pl.col("scores").alias("stored")).unique(keys, keep="any")
    joined = rows.drop("scores").join(stored, on=keys, how="left", nulls_equal=True, maintain_order="left")
    is_stored = joined["stored"].is_not_null()
    parts = []
    for mask, reused in ((is_stored, unchanged), (~is_stored, list[Scorer]())):
        part = joined.filter(mask)
        if not part.height:
            continue
        fields = [name for scorer in reused for name in scorer.fields]
        kept = part["stored"].struct.unnest().select(fields)
        fresh = _run_scorers(part, [scorer for scorer in scorers if scorer not in reused], task, workers)
        place = pl.Series("place", mask.arg_true())
        parts.append(pl.concat([place.to_frame(), kept, fresh], how="horizontal"))
    if not parts:
        return _add_scores_column(rows, _run_scorers(rows, scorers, task, workers))
    return _add_scores_column(rows, pl.concat(parts, how="diagonal").sort("place").drop("place"))


def _run_scorers(rows: pl.DataFrame, scorers: Sequence[Scorer], task: TaskView, workers: Workers) -> pl.DataFrame:
    """Compute the fields of these scorers in batches, so that only one batch's text columns are in memory."""
    schema = pl.Schema(dict(SCORES.to_schema().items()))
    fields = [name for scorer in scorers for name in scorer.fields]
    if not fields:
        return pl.DataFrame()
    empty = pl.DataFrame(schema={name: schema[name] for name in fields})
    batches = list(rows.iter_slices(SCORING_BATCH_ROWS)) if rows.height else []
    scored = map_parts(workers, partial(_score_batch, scorers=scorers, task=task), batches)
    return pl.concat([empty, *(wide.select(pl.col(name).cast(schema[name]) for name in fields) for wide in scored)])


def _score_batch(batch: pl.DataFrame, scorers: Sequence[Scorer], task: TaskView) -> pl.DataFrame:
    texts = add_text_columns(batch)
    return pl.concat([scorer.run(texts, task).select(scorer.fields) for scorer in scorers], how="horizontal")


def _add_scores_column(rows: pl.DataFrame, values: pl.DataFrame) -> pl.DataFrame:
    """Add the column `scores`, made of the columns in `values`. A field without a column is null."""
    fields = [
        (values[name] if name in values.columns else pl.Series(name, [None] * rows.height, dtype=dtype)).alias(name)
        for name, dtype in SCORES.to_schema().items()
    ]
    return rows.with_columns(pl.DataFrame(fields).to_struct("scores").cast(SCORES))
