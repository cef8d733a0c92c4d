"""Scores that have to be computed, once for each row and version of a scorer: columns of `scored_completions.scores`.

Thresholds are no business of a scorer. What needs a score names its scorer (`filters.base.Filter.scorers`), and only
those that a task's filters need are run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from distill_dagster.curation.scores.base import PROSE_FIELDS, Scorer
from distill_dagster.curation.scores.gold import GOLD_SCORER
from distill_dagster.curation.scores.private import PRIVATE_SCORER
from distill_dagster.curation.scores.reasoning import ARITHMETIC_SCORER, REASONING_SCORER
from distill_dagster.curation.scores.texts import BOILERPLATE_SCORER, LANGUAGE_SCORER, LENGTHS_SCORER, REFUSAL_SCORER
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import add_text_columns
from distill_dagster.tables.schemas import SCORES

__all__ = ["SCORERS", "Scorer", "add_scores", "get_scorer_versions"]

SCORING_BATCH_ROWS = 50_000


def _score_prose(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    from distill_dagster.curation.scores.prose import measure_prose  # late: numba

    return measure_prose(rows["written"])


def _score_echo(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    from distill_dagster.curation.scores.prose import measure_echo

    return measure_echo(rows["answer_text"], rows["text"]).to_frame()


def _copy_completion_fields(rows: pl.DataFrame, about: TaskView) -> pl.DataFrame:
    """Of the completion that the candidate is: not of the texts, so the stage brings it along where it knows it."""
    names = {"finish_reason": pl.String, "completion_tokens": pl.Int64}
    held = [pl.col(n) if n in rows.columns else pl.lit(None, dtype=t).alias(n) for n, t in names.items()]
    return rows.with_columns(held).select(list(names))  # a literal alone would be one row


PROSE_SCORER = Scorer("prose", "1", PROSE_FIELDS, _score_prose)
ECHO_SCORER = Scorer("echo", "1", ("echo",), _score_echo)
SAMPLE_SCORER = Scorer("sample", "1", ("finish_reason", "completion_tokens"), _copy_completion_fields)
SCORERS = {
    one.name: one
    for one in (
        LENGTHS_SCORER,
        SAMPLE_SCORER,
        REFUSAL_SCORER,
        BOILERPLATE_SCORER,
        ECHO_SCORER,
        LANGUAGE_SCORER,
        PROSE_SCORER,
        REASONING_SCORER,
        ARITHMETIC_SCORER,
        GOLD_SCORER,
        PRIVATE_SCORER,
    )
}


def get_scorer_versions(scorers: Sequence[Scorer]) -> dict[str, str]:
    """The version of each by name, as a record keeps them."""
    return {one.name: one.version for one in scorers}


def add_scores(
    rows: pl.DataFrame,
    scorers: Sequence[Scorer],
    about: TaskView,
    before: pl.DataFrame | None = None,
    before_versions: Mapping[str, str] | None = None,
) -> pl.DataFrame:
    """The rows with `scores` by these scorers; every other score is null.

    Args:
        rows: candidates (schema SCORED); `finish_reason` and `completion_tokens` may stand beside.
        before: candidates that were scored before: a row of the same content keeps their scores, by each scorer whose
            version in `before_versions` is the same.
    """
    if not scorers:
        return rows.with_columns(pl.lit(None, dtype=SCORES).alias("scores"))
    known = before_versions or {}
    old = [
        one for one in scorers if before is not None and known.get(one.name) == one.version and one is not SAMPLE_SCORER
    ]
    if before is None or not old:
        return _add_scores_column(rows, _run_scorers(rows, scorers, about))
    keys = ["prompt_id", "answer", "reasoning", "reference"]
    stored = before.select(*keys, pl.col("scores").alias("stored")).unique(keys, keep="any")
    joined = rows.drop("scores").join(stored, on=keys, how="left", nulls_equal=True, maintain_order="left")
    found = joined["stored"].is_not_null()
    parts = []
    for mask, cached in ((found, old), (~found, list[Scorer]())):
        part = joined.filter(mask)
        if not part.height:
            continue
        fields = [name for one in cached for name in one.fields]
        kept = part["stored"].struct.unnest().select(fields)
        fresh = _run_scorers(part, [one for one in scorers if one not in cached], about)
        at = pl.Series("at", mask.arg_true())
        parts.append(pl.concat([at.to_frame(), kept, fresh], how="horizontal"))
    values = pl.concat(parts, how="diagonal").sort("at").drop("at") if parts else _run_scorers(rows, scorers, about)
    return _add_scores_column(rows, values)


def _run_scorers(rows: pl.DataFrame, scorers: Sequence[Scorer], about: TaskView) -> pl.DataFrame:
    """The fields of these scorers, batch by batch, so that no more texts are held twice than a batch has."""
    schema = pl.Schema(dict(SCORES.to_schema().items()))
    fields = [name for one in scorers for name in one.fields]
    empty = pl.DataFrame(schema={name: schema[name] for name in fields})
    out = [empty] if fields else []
    for batch in rows.iter_slices(SCORING_BATCH_ROWS) if rows.height else ():
        texts = add_text_columns(batch)
        parts = [one.run(texts, about).select(one.fields) for one in scorers]
        if parts:
            wide = pl.concat(parts, how="horizontal")
            out.append(wide.select(pl.col(name).cast(schema[name]) for name in fields))
    return pl.concat(out) if out else pl.DataFrame()


def _add_scores_column(rows: pl.DataFrame, values: pl.DataFrame) -> pl.DataFrame:
    fields = [
        (values[name] if name in values.columns else pl.Series(name, [None] * rows.height, dtype=dtype)).alias(name)
        for name, dtype in SCORES.to_schema().items()
    ]
    return rows.with_columns(pl.DataFrame(fields).to_struct("scores").cast(SCORES))
