"""Steps after the filters, which compare rows: each sets the drop reason of rows that are still kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import polars as pl

from distill_dagster.config.balance import BalanceSpec
from distill_dagster.curation.dataset.balance import OVER_CAP, balance_rows
from distill_dagster.curation.dataset.comparison_cache import cluster_kept_rows
from distill_dagster.curation.dataset.slim_rows import CandidateTexts

if TYPE_CHECKING:
    from distill_dagster.core.embedding import EmbedFunction

LEAK_SCHEMA = pl.Schema({"prompt_id": pl.String, "slice": pl.String, "golden_id": pl.String, "kind": pl.String})
"""A hit of decontamination, for the report; a column `overlap` follows."""
_PREFERENCE_COLUMNS = ("not_human", "not_log", "by_teacher", "less_confident", "prompt_id", "slice", "answer")
"""The row that represents a group comes first: a human's prompt before one of a log and that before an imagined one, a
human's answer before a teacher's, then the higher confidence, then the lower id."""


def drop_contaminated(rows: pl.DataFrame, held_out: set[str]) -> pl.DataFrame:
    """Drop kept rows whose `text_key` is that of a golden or dev row (`held_out`)."""
    keys = pl.Series("text_key", sorted(held_out), dtype=pl.String)
    hit = rows.select(_is_kept_expr() & pl.col("text_key").is_in(keys.implode())).to_series().arg_true()
    same = pl.lit("same text as a golden or dev row").alias("why")
    return _set_drop_reason(rows, pl.DataFrame({"row": hit}).with_columns(same), "contaminated")


def drop_leaks(rows: pl.DataFrame, found: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Drop kept rows that contain or nearly equal a golden or dev row (`dedup.decontaminate`).

    Args:
        rows: with `ident`.
        found: the leaks (`matches.Matches`).

    Returns:
        the rows, and every hit of kept ones: LEAK_SCHEMA and `overlap`.
    """
    if found.is_empty():
        return rows, pl.DataFrame(schema=LEAK_SCHEMA).with_columns(found["overlap"])
    kept = _select_kept_rows(rows, found["id"])
    hits = found.rename({"id": "ident"}).join(kept, on="ident", maintain_order="left")
    first = hits.group_by("ident", maintain_order=True).first()
    why = pl.concat_str("kind", pl.lit(" of "), "golden_id", pl.lit(", overlap "), pl.col("overlap").round(2))
    leaked = first.select("row", why.alias("why"))
    return _set_drop_reason(rows, leaked, "contaminated"), hits.select([*LEAK_SCHEMA, "overlap"]).sort(pl.all())


def drop_duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """Drop kept rows whose `text_key` equals that of a better row, which the detail and `cluster_id` name."""
    keys = rows.lazy().select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"), "text_key", *_preference_exprs())
    kept = keys.filter(pl.lit(rows["drop_reason"].is_null()))
    several = kept.filter(pl.col("text_key").is_duplicated()).sort(_PREFERENCE_COLUMNS, nulls_last=True)
    first = pl.col("prompt_id").first().over("text_key")
    place = pl.int_range(pl.len()).over("text_key")
    found = several.select("row", first.alias("kept_id"), place.alias("place")).filter(pl.col("place") > 0)
    why = pl.concat_str(pl.lit("same text as "), "kept_id").alias("why")
    return _set_drop_reason(rows, found.select("row", "kept_id", why).collect(), "duplicate")


def drop_near_duplicates(rows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Drop kept rows whose text is near that of a better row."""
    return _drop_clusters(rows, pairs, "near_duplicate")


def merge_near_duplicates(rows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Give kept rows that are near each other one `text_key`, so that they get the same split."""
    kept = rows.filter(_is_kept_expr()).select("ident", "text_key").sort("text_key", "ident")
    gone = cluster_kept_rows(pairs, kept.select("ident")).select("ident", "first")
    first = gone.join(kept.rename({"ident": "first", "text_key": "group"}), on="first").drop("first")
    joined = rows.join(first, on="ident", how="left", maintain_order="left")
    return joined.with_columns(pl.coalesce("group", "text_key").alias("text_key")).drop("group")


def drop_semantic_duplicates(rows: pl.DataFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Drop kept rows whose prompt means the same as that of a better row."""
    return _drop_clusters(rows, pairs, "semantic_duplicate")


def drop_over_caps(
    rows: pl.DataFrame, texts: CandidateTexts, spec: BalanceSpec, seed: int, embed: EmbedFunction | None
) -> pl.DataFrame:
    """Drop kept rows above a cap (`balance`)."""
    kept = rows.with_row_index("row").filter(_is_kept_expr())
    if spec.choice == "diverse":
        kept = kept.drop("text").join(texts.scan().collect(), on="ident", maintain_order="left")
    cut = balance_rows(kept, spec, seed, embed).filter(~_is_kept_expr())
    return _set_drop_reason(rows, cut.select("row", pl.col("drop_detail").alias("why")), OVER_CAP)


def _drop_clusters(rows: pl.DataFrame, pairs: pl.DataFrame, reason: str) -> pl.DataFrame:
    if pairs.is_empty():
        return rows
    kept = _select_kept_rows(rows, pl.concat([pairs["left"], pairs["right"]]))
    gone = cluster_kept_rows(pairs, kept.select("ident"))
    for name in ("first", "like"):
        prompts = kept.select(pl.col("ident").alias(name), pl.col("prompt_id").alias(f"{name}_id"))
        gone = gone.join(prompts, on=name, how="left", maintain_order="left")
    similar = pl.concat_str(pl.lit("like "), "like_id", pl.lit(", similarity "), pl.col("similarity").round(2))
    dropped = gone.join(kept.select("ident", "row"), on="ident", how="left", maintain_order="left")
    return _set_drop_reason(
        rows, dropped.select("row", similar.alias("why"), pl.col("first_id").alias("kept_id")), reason
    )


def _select_kept_rows(rows: pl.DataFrame, only: pl.Series) -> pl.DataFrame:
    """`row` (the place), `ident`, `prompt_id` and `slice` of these kept rows, better rows first."""
    place = pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
    slim = rows.lazy().select(place, "ident", "drop_reason", *_preference_exprs())
    wanted = pl.LazyFrame({"ident": only.unique()})
    kept = (
        slim.filter(_is_kept_expr())
        .join(wanted, on="ident", how="semi")
        .collect()
        .sort(*_PREFERENCE_COLUMNS, "ident", nulls_last=True)
    )
    return kept.select("row", "ident", "prompt_id", "slice")


def _preference_exprs() -> Sequence[pl.Expr]:
    return (
        (pl.col("origin") != "human").alias("not_human"),
        (pl.col("origin") != "log").alias("not_log"),
        pl.col("teacher").is_not_null().alias("by_teacher"),
        (-pl.col("confidence")).alias("less_confident"),
        pl.col("prompt_id"),
        pl.col("slice"),
        pl.col("answer"),
    )


def _is_kept_expr() -> pl.Expr:
    return pl.col("drop_reason").is_null()


def _set_drop_reason(rows: pl.DataFrame, changes: pl.DataFrame, reason: str) -> pl.DataFrame:
    """The rows with `reason` at the places `row`, `why` as detail and, if present, `kept_id` as cluster."""
    if changes.is_empty():
        return rows
    places = changes["row"]
    changed = [rows["drop_reason"].scatter(places, reason), rows["drop_detail"].scatter(places, changes["why"])]
    if "kept_id" in changes.columns:
        changed.append(rows["cluster_id"].scatter(places, changes["kept_id"]))
    return rows.with_columns(changed)
