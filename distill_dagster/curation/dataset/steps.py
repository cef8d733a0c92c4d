"""Steps after the filters, which compare rows: each sets the drop reason of rows that are still kept.

Each takes and returns the decisions on all rows, and reads of the slim rows what it needs:

    decided     `drop_reason`, `drop_detail` and `cluster_id`, in the order of the slim rows
    rows        the slim rows, on disk (`slim_rows.build_slim_rows`)
"""

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


def drop_contaminated(decided: pl.DataFrame, rows: pl.LazyFrame, held_out: set[str]) -> pl.DataFrame:
    """Drop kept rows whose `text_key` is that of a golden or dev row (`held_out`)."""
    keys = pl.Series("text_key", sorted(held_out), dtype=pl.String)
    hit = scan_kept_rows(decided, rows).filter(pl.col("text_key").is_in(keys.implode()))
    same = pl.lit("same text as a golden or dev row").alias("why")
    return _set_drop_reason(decided, hit.select("row", same).collect(engine="streaming"), "contaminated")


def drop_leaks(decided: pl.DataFrame, rows: pl.LazyFrame, found: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Drop kept rows that contain or nearly equal a golden or dev row (`dedup.decontaminate`).

    Args:
        found: `matches.Matches.leaks`.

    Returns:
        the decisions, and every hit of kept rows: LEAK_SCHEMA and `overlap`.
    """
    if found.is_empty():
        return decided, pl.DataFrame(schema=LEAK_SCHEMA).with_columns(found["overlap"])
    hits = found.join(_rank_kept_rows(decided, rows, found["row"]), on="row", maintain_order="left")
    first = hits.group_by("row", maintain_order=True).first()
    why = pl.concat_str("kind", pl.lit(" of "), "golden_id", pl.lit(", overlap "), pl.col("overlap").round(2))
    leaked = first.select("row", why.alias("why"))
    return _set_drop_reason(decided, leaked, "contaminated"), hits.select([*LEAK_SCHEMA, "overlap"]).sort(pl.all())


def drop_duplicates(decided: pl.DataFrame, rows: pl.LazyFrame) -> pl.DataFrame:
    """Drop kept rows whose `text_key` equals that of a better row, which the detail and `cluster_id` name."""
    keys = scan_kept_rows(decided, rows).select("row", "text_key").collect(engine="streaming")
    several = keys.filter(pl.col("text_key").is_duplicated())
    ranked = _rank_kept_rows(decided, rows, several["row"]).join(several, on="row", maintain_order="left")
    first = pl.col("prompt_id").first().over("text_key")
    place = pl.int_range(pl.len()).over("text_key")
    found = ranked.select("row", first.alias("kept_id"), place.alias("place")).filter(pl.col("place") > 0)
    why = pl.concat_str(pl.lit("same text as "), "kept_id").alias("why")
    return _set_drop_reason(decided, found.select("row", "kept_id", why), "duplicate")


def drop_near_duplicates(decided: pl.DataFrame, rows: pl.LazyFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Drop kept rows whose text is near that of a better row (`matches.Matches.near`)."""
    return _drop_clusters(decided, rows, pairs, "near_duplicate")


def drop_semantic_duplicates(decided: pl.DataFrame, rows: pl.LazyFrame, pairs: pl.DataFrame) -> pl.DataFrame:
    """Drop kept rows whose prompt means the same as that of a better row (`matches.Matches.semantic`)."""
    return _drop_clusters(decided, rows, pairs, "semantic_duplicate")


def drop_over_caps(
    decided: pl.DataFrame,
    rows: pl.LazyFrame,
    texts: CandidateTexts,
    spec: BalanceSpec,
    seed: int,
    embed: EmbedFunction | None,
) -> pl.DataFrame:
    """Drop kept rows above a cap (`balance`)."""
    needed = [name for name in rows.collect_schema() if name not in {"text", "compared", "text_key", "masks", "origin"}]
    kept = scan_kept_rows(decided, rows.select(needed)).collect(engine="streaming")
    if spec.choice == "diverse":
        kept = kept.join(texts.scan().select("ident", "text").collect(), on="ident", maintain_order="left")
    cut = balance_rows(kept, spec, seed, embed).filter(pl.col("drop_reason").is_not_null())
    return _set_drop_reason(decided, cut.select("row", pl.col("drop_detail").alias("why")), OVER_CAP)


def merge_near_duplicates(decided: pl.DataFrame, rows: pl.LazyFrame, pairs: pl.DataFrame) -> pl.Series:
    """The `text_key` of all rows. Kept rows that are near each other have one, so that they get the same split."""
    keys = rows.select("text_key").collect(engine="streaming")["text_key"]
    kept = _rank_kept_rows(decided, rows, pl.concat([pairs["left"], pairs["right"]]))
    kept = kept.select("row", "ident", keys.gather(kept["row"])).sort("text_key", "ident")
    gone = cluster_kept_rows(pairs, kept.select(ident="row"))
    return keys.scatter(gone["ident"], keys.gather(gone["first"]))


def scan_kept_rows(decided: pl.DataFrame, rows: pl.LazyFrame) -> pl.LazyFrame:
    """The slim rows that are still kept, and their place as `row`."""
    reasons = decided.lazy().select("drop_reason")
    numbered = pl.concat([rows, reasons], how="horizontal").with_row_index("row")
    return numbered.filter(pl.col("drop_reason").is_null()).drop("drop_reason")


def _drop_clusters(decided: pl.DataFrame, rows: pl.LazyFrame, pairs: pl.DataFrame, reason: str) -> pl.DataFrame:
    if pairs.is_empty():
        return decided
    kept = _rank_kept_rows(decided, rows, pl.concat([pairs["left"], pairs["right"]]))
    gone = cluster_kept_rows(pairs, kept.select(ident="row")).rename({"ident": "row"})
    for name in ("first", "like"):
        prompts = kept.select(pl.col("row").alias(name), pl.col("prompt_id").alias(f"{name}_id"))
        gone = gone.join(prompts, on=name, how="left", maintain_order="left")
    similar = pl.concat_str(pl.lit("like "), "like_id", pl.lit(", similarity "), pl.col("similarity").round(2))
    return _set_drop_reason(decided, gone.select("row", similar.alias("why"), kept_id="first_id"), reason)


def _rank_kept_rows(decided: pl.DataFrame, rows: pl.LazyFrame, only: pl.Series) -> pl.DataFrame:
    """`row`, `ident`, `prompt_id` and `slice` of those of these rows that are kept, better rows first.

    A human's prompt comes before one of a log and that before an imagined one, a human's answer before a teacher's,
    then the higher confidence, then the lower id.
    """
    wanted = pl.LazyFrame({"row": only.unique()})
    kept = scan_kept_rows(decided, rows).join(wanted, on="row", how="semi")
    kept = kept.select("row", "ident", "prompt_id", "slice", "answer", *_preference_exprs())
    preferred = kept.collect(engine="streaming").sort(
        "not_human", "not_log", "by_teacher", "less_confident", "prompt_id", "slice", "answer", "ident", nulls_last=True
    )
    return preferred.select("row", "ident", "prompt_id", "slice")


def _preference_exprs() -> Sequence[pl.Expr]:
    return (
        (pl.col("origin") != "human").alias("not_human"),
        (pl.col("origin") != "log").alias("not_log"),
        pl.col("teacher").is_not_null().alias("by_teacher"),
        (-pl.col("confidence")).alias("less_confident"),
    )


def _set_drop_reason(decided: pl.DataFrame, changes: pl.DataFrame, reason: str) -> pl.DataFrame:
    """The decisions with `reason` at the places `row`, `why` as detail and, if present, `kept_id` as cluster."""
    if changes.is_empty():
        return decided
    places = changes["row"]
    changed = [decided["drop_reason"].scatter(places, reason), decided["drop_detail"].scatter(places, changes["why"])]
    if "kept_id" in changes.columns:
        changed.append(decided["cluster_id"].scatter(places, changes["kept_id"]))
    return decided.with_columns(changed)
