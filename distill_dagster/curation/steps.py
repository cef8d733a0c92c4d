"""What looks at more than one row, behind the filters: each step marks rows that are still kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from distill_dagster.curation.stepspecs import DecontaminationSpec, NearSpec, SemanticSpec

if TYPE_CHECKING:
    from distill_dagster.curation.neardup.duplicates import Duplicates
    from distill_dagster.curation.neardup.rows import Limits
    from distill_dagster.curation.neardup.semantic import Embed

LEAKS = pl.Schema({"prompt_id": pl.String, "slice": pl.String, "golden_id": pl.String, "kind": pl.String})
"""Every hit of decontamination, for the report; `overlap` stands behind it."""
_ORDER = ("not_human", "not_log", "taught", "less_sure", "prompt_id", "slice", "answer")
"""Who stands for a group: a human's prompt before one of a log and that before an imagined one, a human's answer before
a teacher's (which may be as sure), then the surest, then the first by id."""


def contaminated(rows: pl.DataFrame, held_out: set[str]) -> pl.DataFrame:
    """Drop kept rows whose `text_key` is that of a golden or dev row (`held_out`)."""
    keys = pl.Series("text_key", sorted(held_out), dtype=pl.String)
    hit = rows.select(_kept() & pl.col("text_key").is_in(keys.implode())).to_series().arg_true()
    same = pl.lit("same text as a golden or dev row").alias("why")
    return _marked(rows, pl.DataFrame({"row": hit}).with_columns(same), "contaminated")


def leaking(
    rows: pl.DataFrame, items: pl.DataFrame, spec: DecontaminationSpec, keep_numbers: bool, limits: Limits | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Drop kept rows that hold golden or dev rows, or nearly are one (`decontaminate`).

    Args:
        rows: with `text`, the user's turns.
        items: `id` and `text` of golden and dev rows.

    Returns:
        the rows, and every hit: LEAKS and `overlap`.
    """
    from distill_dagster.curation.decontaminate import decontaminate
    from distill_dagster.curation.neardup.text import Scheme

    named = _named(rows)
    found = decontaminate(
        named.select("id", "text"),
        items,
        ngram=spec.ngram,
        min_overlap=spec.min_overlap,
        whole_below=spec.whole_below,
        threshold=spec.threshold,
        scheme=Scheme(keep_numbers=keep_numbers),
        limits=limits,
    )
    first = found.hits.group_by("id", maintain_order=True).first()
    detail = pl.concat_str("kind", pl.lit(" of "), "golden_id", pl.lit(", overlap "), pl.col("overlap").round(2))
    told = first.select("id", detail.alias("why"))
    hits = found.hits.join(named.select("id", "prompt_id", "slice"), on="id", how="left", maintain_order="left")
    return _drop(rows, named, told, "contaminated"), hits.select([*LEAKS, "overlap"])


def duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """Of kept rows with one `text_key` drop all but their representative, which the detail and `cluster_id` name."""
    keys = rows.lazy().select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"), "text_key", *_order())
    kept = keys.filter(pl.lit(rows["drop_reason"].is_null()))
    several = kept.filter(pl.col("text_key").is_duplicated()).sort(_ORDER, nulls_last=True)
    first = pl.col("prompt_id").first().over("text_key")
    place = pl.int_range(pl.len()).over("text_key")
    found = several.select("row", first.alias("kept_id"), place.alias("place")).filter(pl.col("place") > 0)
    why = pl.concat_str(pl.lit("same text as "), "kept_id").alias("why")
    return _marked(rows, found.select("row", "kept_id", why).collect(), "duplicate")


def near_duplicates(
    rows: pl.DataFrame, texts: pl.Series, spec: NearSpec, keep_numbers: bool, limits: Limits | None = None
) -> pl.DataFrame:
    """Of kept rows that are near each other drop all but the representative.

    Args:
        texts: what is compared, of every row.
    """
    from distill_dagster.curation.neardup.duplicates import find_duplicates
    from distill_dagster.curation.neardup.text import Scheme

    named = _named(rows, texts.alias("compared"))
    scheme = Scheme(ngram=spec.ngram, min_words=spec.min_words, keep_numbers=keep_numbers)
    found = find_duplicates(named, text="compared", scheme=scheme, threshold=spec.threshold, limits=limits)
    return _drop_members(rows, named, found, "near_duplicate")


def semantic_duplicates_of(
    rows: pl.DataFrame, embed: Embed, spec: SemanticSpec, limits: Limits | None = None
) -> pl.DataFrame:
    """Of kept rows whose prompts mean the same drop all but the representative; none of a table beyond `most_rows`."""
    from distill_dagster.curation.neardup.semantic import semantic_duplicates

    named = _named(rows)
    found = semantic_duplicates(named, embed, threshold=spec.threshold, most_rows=spec.most_rows, limits=limits)
    return rows if found is None else _drop_members(rows, named, found, "semantic_duplicate")


def _drop_members(rows: pl.DataFrame, named: pl.DataFrame, found: Duplicates, reason: str) -> pl.DataFrame:
    ids = dict(zip(named["id"], named["prompt_id"], strict=True)) if found.members.height else {}
    gone = found.rejected
    told = gone.select(
        "id",
        pl.col("cluster_id").replace_strict(ids, return_dtype=pl.String).alias("kept_id"),
        pl.concat_str(
            pl.lit("like "),
            pl.col("like").replace_strict(ids, return_dtype=pl.String),
            pl.lit(", similarity "),
            pl.col("similarity").round(2),
        ).alias("why"),
    )
    return _drop(rows, named, told, reason)


def _order() -> Sequence[pl.Expr]:
    return (
        (pl.col("origin") != "human").alias("not_human"),
        (pl.col("origin") != "log").alias("not_log"),
        pl.col("teacher").is_not_null().alias("taught"),
        (-pl.col("confidence")).alias("less_sure"),
        pl.col("prompt_id"),
        pl.col("slice"),
        pl.col("answer"),
    )


def _named(rows: pl.DataFrame, more: pl.Series | None = None) -> pl.DataFrame:
    """Of the kept rows `row` (their place), text, prompt and slice, and an `id` that sorts as they are to be preferred:
    unique also where a prompt stands in several slices, and the same whatever the order of the rows."""
    narrow = rows.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"), "text", "drop_reason", *_order())
    narrow = narrow if more is None else narrow.with_columns(more)
    kept = narrow.filter(_kept()).sort(_ORDER, nulls_last=True).with_row_index("rank")
    return kept.with_columns(pl.col("rank").cast(pl.String).str.zfill(10).alias("id"))


def _drop(rows: pl.DataFrame, named: pl.DataFrame, told: pl.DataFrame, reason: str) -> pl.DataFrame:
    """Mark the rows that `told` names by `id`, with its `why` and, where it has one, its `kept_id`."""
    return _marked(rows, told.join(named.select("id", "row"), on="id", how="left"), reason)


def _kept() -> pl.Expr:
    return pl.col("drop_reason").is_null()


def _marked(rows: pl.DataFrame, told: pl.DataFrame, reason: str) -> pl.DataFrame:
    """The rows with the reason at the places `row`, and beside it `why` and, where it is there, `kept_id`."""
    if told.is_empty():
        return rows
    at = told["row"]
    changed = [rows["drop_reason"].scatter(at, reason), rows["drop_detail"].scatter(at, told["why"])]
    if "kept_id" in told.columns:
        changed.append(rows["cluster_id"].scatter(at, told["kept_id"]))
    return rows.with_columns(changed)
