"""What looks at more than one row, behind the filters: each step marks rows that are still kept."""

from __future__ import annotations

import polars as pl


def contaminated(rows: pl.DataFrame, held_out: set[str]) -> pl.DataFrame:
    """Drop kept rows whose `text_key` is that of a golden or dev row (`held_out`)."""
    keys = pl.Series("text_key", sorted(held_out), dtype=pl.String)
    hit = rows.select(pl.col("drop_reason").is_null() & pl.col("text_key").is_in(keys.implode())).to_series()
    return _marked(rows, hit.arg_true(), "contaminated", "same text as a golden or dev row")


def duplicates(rows: pl.DataFrame) -> pl.DataFrame:
    """Of kept rows with one `text_key` drop all but their representative, which the detail names.

    It is a human's prompt before one of a log and that before an imagined one, a human's answer before a teacher's
    (which may be as sure), then the surest, then the first by id.
    """
    keys = rows.lazy().select(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
        "text_key",
        "drop_reason",
        (pl.col("origin") != "human").alias("not_human"),
        (pl.col("origin") != "log").alias("not_log"),
        pl.col("teacher").is_not_null().alias("taught"),
        "confidence",
        "prompt_id",
        "slice",
        "answer",
    )
    kept = keys.filter(pl.col("drop_reason").is_null())
    several = kept.filter(pl.col("text_key").is_duplicated())
    by = ["not_human", "not_log", "taught", "confidence", "prompt_id", "slice", "answer"]
    ranked = several.sort(by, descending=[False, False, False, True, False, False, False], nulls_last=True)
    first = pl.col("prompt_id").first().over("text_key")
    place = pl.int_range(pl.len()).over("text_key")
    found = ranked.select("row", first.alias("kept_id"), place.alias("place")).filter(pl.col("place") > 0).collect()
    return _marked(rows, found["row"], "duplicate", "same text as " + found["kept_id"])


def _marked(rows: pl.DataFrame, at: pl.Series, reason: str, detail: str | pl.Series) -> pl.DataFrame:
    """The rows, of which those at these places are dropped."""
    if not len(at):
        return rows
    return rows.with_columns(
        rows["drop_reason"].clone().scatter(at, reason), rows["drop_detail"].clone().scatter(at, detail)
    )
