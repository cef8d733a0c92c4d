"""Train or validation by a hash of the text. A row keeps its side when other rows come or go."""

from __future__ import annotations

import polars as pl

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.curation.dataset.balance import select_stratified
from distill_dagster.curation.text_columns import json_text_expr

KEY_DIGITS = 32
"""Digits of a text's hash that are kept: 128 bits, so that no two texts of a dataset share them."""
DRAW_DIGITS = 8
"""Digits of a text's hash that decide its side: 32 bits."""


def hash_text_keys(keys: pl.Series, seed: int) -> pl.Series:
    """The first `KEY_DIGITS` hexadecimal digits of `hash_content([seed, key])` of each normalized text."""
    import duckdb

    start = pl.lit(f"[{to_canonical_json(seed)},")
    text = keys.to_frame("key").select(pl.concat_str(start, json_text_expr(pl.col("key")), pl.lit("]"))).to_series()
    with duckdb.connect(":memory:") as connection:
        connection.register("keyed", text.to_frame("key").to_arrow())
        drawn = connection.sql(f"SELECT left(sha256(key), {KEY_DIGITS}) AS text_key FROM keyed").to_arrow_table()
    return pl.DataFrame(drawn)["text_key"].cast(pl.String)


def assign_splits(hashes: pl.Series, teachers: pl.Series, share: float) -> pl.Series:
    """`train` or `validation` of each row, by the first `DRAW_DIGITS` of its text's hash (`hash_text_keys`).

    Validation measures how well the student follows the teacher. So all answers of people are for training.
    """
    if not share:
        return pl.Series("split", ["train"], dtype=pl.String).new_from_index(0, len(hashes)).alias("split")
    frame = pl.DataFrame({"draw": hashes.str.head(DRAW_DIGITS), "taught": teachers.is_not_null()})
    # Hexadecimal digits sort like the number that they write.
    below = pl.col("draw") < f"{int(share * 16**DRAW_DIGITS):0{DRAW_DIGITS}x}"
    chosen = pl.when(below & pl.col("taught")).then(pl.lit("validation")).otherwise(pl.lit("train"))
    return frame.select(chosen.alias("split")).to_series()


def assign_stratified_splits(strata: pl.Series, hashes: pl.Series, teachers: pl.Series, share: float) -> pl.Series:
    """`train` or `validation` of each row, with the same share of validation in every stratum of the teacher's rows."""
    frame = pl.DataFrame({"stratum": strata, "group": hashes, "taught": teachers.is_not_null()}).with_row_index("row")
    taught = frame.filter("taught")
    side = select_stratified(taught["stratum"], taught["group"], share)
    chosen = taught.select("row").with_columns(side.alias("chosen")).filter("chosen")["row"]
    return pl.Series("split", ["train"], dtype=pl.String).new_from_index(0, len(hashes)).scatter(chosen, "validation")
