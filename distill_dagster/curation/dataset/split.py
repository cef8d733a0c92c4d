"""Train or validation by a hash of the text. A row keeps its side when other rows come or go."""

from __future__ import annotations

import polars as pl

from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.curation.dataset.balance import select_stratified
from distill_dagster.curation.text_columns import json_text_expr


def assign_splits(keys: pl.Series, teachers: pl.Series, share: float, seed: int) -> pl.Series:
    """`train` or `validation` of each row, by the first 32 bits of `hash_content([seed, key])` against the share.

    Validation measures how well the student follows the teacher. So all answers of people are for training.
    """
    if not share:
        return pl.Series("split", ["train"], dtype=pl.String).new_from_index(0, len(keys)).alias("split")
    import duckdb

    start = pl.lit(f"[{to_canonical_json(seed)},")
    text = keys.to_frame("key").select(pl.concat_str(start, json_text_expr(pl.col("key")), pl.lit("]"))).to_series()
    with duckdb.connect(":memory:") as connection:
        connection.register("keyed", text.to_frame("key").to_arrow())
        drawn = connection.sql("SELECT left(sha256(key), 8) AS draw FROM keyed").to_arrow_table()
    frame = pl.DataFrame(drawn).with_columns(teachers.is_not_null().alias("taught"))
    # Hexadecimal digits sort like the number that they write.
    below = pl.col("draw") < f"{int(share * 16**8):08x}"
    chosen = pl.when(below & pl.col("taught")).then(pl.lit("validation")).otherwise(pl.lit("train"))
    return frame.select(chosen.alias("split")).to_series()


def assign_stratified_splits(
    strata: pl.Series, keys: pl.Series, teachers: pl.Series, share: float, seed: int
) -> pl.Series:
    """`train` or `validation` of each row, with the same share of validation in every stratum of the teacher's rows."""
    frame = pl.DataFrame({"stratum": strata, "key": keys, "taught": teachers.is_not_null()}).with_row_index("row")
    taught = frame.filter("taught")
    groups = [hash_content([seed, key]) for key in taught["key"]]
    side = select_stratified(taught["stratum"], pl.Series("group", groups, dtype=pl.String), share)
    chosen = taught.select("row").with_columns(side.alias("chosen")).filter("chosen")["row"]
    return pl.Series("split", ["train"], dtype=pl.String).new_from_index(0, len(keys)).scatter(chosen, "validation")
