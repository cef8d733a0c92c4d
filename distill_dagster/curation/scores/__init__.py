"""Scores that have to be computed, once for each row and version of a scorer: columns of `scored_completions.scores`.

Thresholds are no business of a scorer. What needs a score names its scorer (`filters.base.Filter.scorers`), and only
those that a task's filters need are run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from distill_dagster.curation.scores.base import PROSE_FIELDS, Scorer
from distill_dagster.curation.scores.gold import GOLD
from distill_dagster.curation.scores.private import PRIVATE
from distill_dagster.curation.scores.reasoning import ARITHMETIC, REASONING
from distill_dagster.curation.scores.texts import BOILER, LANGUAGE, LENGTHS, REFUSAL
from distill_dagster.curation.task_view import About
from distill_dagster.curation.text_columns import with_texts
from distill_dagster.tables.schemas import SCORES

__all__ = ["SCORERS", "Scorer", "add_scores", "versions"]

BATCH_ROWS = 50_000


def _prose(rows: pl.DataFrame, about: About) -> pl.DataFrame:
    from distill_dagster.curation.scores.prose import prose  # late: numba

    return prose(rows["written"])


def _echo(rows: pl.DataFrame, about: About) -> pl.DataFrame:
    from distill_dagster.curation.scores.prose import echo

    return echo(rows["answer_text"], rows["text"]).to_frame()


def _sample(rows: pl.DataFrame, about: About) -> pl.DataFrame:
    """Of the completion that the candidate is: not of the texts, so the stage brings it along where it knows it."""
    names = {"finish_reason": pl.String, "completion_tokens": pl.Int64}
    held = [pl.col(n) if n in rows.columns else pl.lit(None, dtype=t).alias(n) for n, t in names.items()]
    return rows.with_columns(held).select(list(names))  # a literal alone would be one row


PROSE = Scorer("prose", "1", PROSE_FIELDS, _prose)
ECHO = Scorer("echo", "1", ("echo",), _echo)
SAMPLE = Scorer("sample", "1", ("finish_reason", "completion_tokens"), _sample)
SCORERS = {
    one.name: one
    for one in (LENGTHS, SAMPLE, REFUSAL, BOILER, ECHO, LANGUAGE, PROSE, REASONING, ARITHMETIC, GOLD, PRIVATE)
}


def versions(scorers: Sequence[Scorer]) -> dict[str, str]:
    """The version of each by name, as a record keeps them."""
    return {one.name: one.version for one in scorers}


def add_scores(
    rows: pl.DataFrame,
    scorers: Sequence[Scorer],
    about: About,
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
    old = [one for one in scorers if before is not None and known.get(one.name) == one.version and one is not SAMPLE]
    if before is None or not old:
        return _finished(rows, _scored(rows, scorers, about))
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
        fresh = _scored(part, [one for one in scorers if one not in cached], about)
        at = pl.Series("at", mask.arg_true())
        parts.append(pl.concat([at.to_frame(), kept, fresh], how="horizontal"))
    values = pl.concat(parts, how="diagonal").sort("at").drop("at") if parts else _scored(rows, scorers, about)
    return _finished(rows, values)


def _scored(rows: pl.DataFrame, scorers: Sequence[Scorer], about: About) -> pl.DataFrame:
    """The fields of these scorers, batch by batch, so that no more texts are held twice than a batch has."""
    schema = pl.Schema(dict(SCORES.to_schema().items()))
    fields = [name for one in scorers for name in one.fields]
    empty = pl.DataFrame(schema={name: schema[name] for name in fields})
    out = [empty] if fields else []
    for batch in rows.iter_slices(BATCH_ROWS) if rows.height else ():
        texts = with_texts(batch)
        parts = [one.run(texts, about).select(one.fields) for one in scorers]
        if parts:
            wide = pl.concat(parts, how="horizontal")
            out.append(wide.select(pl.col(name).cast(schema[name]) for name in fields))
    return pl.concat(out) if out else pl.DataFrame()


def _finished(rows: pl.DataFrame, values: pl.DataFrame) -> pl.DataFrame:
    fields = [
        (values[name] if name in values.columns else pl.Series(name, [None] * rows.height, dtype=dtype)).alias(name)
        for name, dtype in SCORES.to_schema().items()
    ]
    return rows.with_columns(pl.DataFrame(fields).to_struct("scores").cast(SCORES))
