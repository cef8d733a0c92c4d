"""Data versions: a hash of a table's content. The order and number of processes that made it do not matter.

`_encode_json` writes whole columns as canonical JSON. A property test,
`test_a_version_is_the_hash_of_every_row_as_canonical_json`, compares it with `core.hashing.to_canonical_json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import polars as pl

from distill_dagster.core.hashing import to_canonical_json

VOLATILE_COLUMNS = ("latency_s", "in_flight", "requested_at", "cost_usd", "source", "error", "judge_error")
"""Columns that are not part of a data version. The text of an error may contain times or an address; that a row failed
is in `status`."""
HASH_BATCH_ROWS = 10_000
"""Rows that are encoded at a time."""
_JSON_ESCAPES = {char: to_canonical_json(char)[1:-1] for char in ('"', "\\", *map(chr, range(0x20)))}
"""The characters that JSON escapes, and how."""
_ESCAPE_PATTERN = r'["\\\x00-\x1f]'


def compute_data_version(*frames: pl.DataFrame | pl.LazyFrame) -> str:
    """sha256 (64 hex digits) of the canonical content of tables without their volatile columns; never of file bytes.

    Lazy frames are read in batches.
    """
    import numpy as np

    digest = hashlib.sha256()
    for frame in frames:
        stable = frame.select(pl.exclude(VOLATILE_COLUMNS))
        digest.update(to_canonical_json(stable.collect_schema().names()).encode())
        if isinstance(stable, pl.LazyFrame):
            parts: Iterator[pl.DataFrame] = iter(
                stable.collect_batches(chunk_size=HASH_BATCH_ROWS, maintain_order=True)
            )
        else:
            parts = stable.iter_slices(HASH_BATCH_ROWS)
        for part in filter(len, parts):
            fields = [("" if number == 0 else ",", column) for number, column in enumerate(part)]
            rows = pl.select(_join_fields("[", fields, "]\n")).to_series().to_arrow()
            _, offsets, texts = rows.cast("large_string").buffers()
            ends = np.frombuffer(offsets, np.int64)[rows.offset : rows.offset + len(rows) + 1]
            digest.update(memoryview(texts)[ends[0] : ends[-1]])
    return digest.hexdigest()


def _encode_json(column: pl.Series) -> pl.Series:
    """Each value of a column as `to_canonical_json` writes it."""
    if column.null_count() == len(column):
        return pl.Series(["null"]).new_from_index(0, len(column))
    if column.dtype == pl.String:
        if column.str.contains(_ESCAPE_PATTERN).any():
            column = column.str.replace_many(_JSON_ESCAPES)
        return ('"' + column + '"').fill_null("null")
    if column.dtype.is_integer():
        return column.cast(pl.String).fill_null("null")
    if column.dtype.is_float() or column.dtype == pl.Boolean:
        return pl.Series(to_canonical_json(column.to_list())[1:-1].split(","))
    if isinstance(column.dtype, pl.Struct):
        names = sorted(column.struct.fields)
        fields = [
            (("" if number == 0 else ",") + to_canonical_json(name) + ":", column.struct.field(name))
            for number, name in enumerate(names)
        ]
        return _keep_nulls(column, _join_fields("{", fields, "}"))
    if isinstance(column.dtype, pl.List):
        lengths = column.list.len().fill_null(0)
        items = _encode_json(column.filter(lengths > 0).explode())
        length = len(items) // len(column)
        if length and lengths.eq(length).all():  # quick for lists of one length, such as prompts with one turn
            places = [items.gather_every(length, place) for place in range(length)]
            return _keep_nulls(column, pl.concat_str(pl.lit("["), *_insert_commas(map(pl.lit, places)), pl.lit("]")))
        rows = pl.int_range(len(column), eager=True).repeat_by(lengths).explode().drop_nulls()
        joined = pl.DataFrame({"row": rows, "text": items}).group_by("row").agg(pl.col("text").str.join(","))
        texts = pl.Series([""]).new_from_index(0, len(column)).scatter(joined["row"], joined["text"])
        return _keep_nulls(column, pl.concat_str(pl.lit("["), pl.lit(texts), pl.lit("]")))
    return pl.Series([to_canonical_json(value) for value in column.to_list()], dtype=pl.String)


def _join_fields(start: str, fields: list[tuple[str, pl.Series]], end: str) -> pl.Expr:
    """The encoded values of several columns in one text per row, each after its prefix.

    A column without values becomes part of the literals between the others. Most score columns have no values.
    """
    parts: list[pl.Expr] = []
    literal = start
    for prefix, column in fields:
        literal += prefix
        if column.null_count() == len(column):
            literal += "null"
        else:
            parts += [pl.lit(literal), pl.lit(_encode_json(column))]
            literal = ""
    rows = len(fields[0][1]) if fields else 0
    if not parts:
        return pl.lit(pl.Series([literal + end]).new_from_index(0, rows))
    return pl.concat_str(*parts, pl.lit(literal + end))


def _insert_commas(parts: Iterator[pl.Expr]) -> list[pl.Expr]:
    return [expr for part in parts for expr in (pl.lit(","), part)][1:]


def _keep_nulls(column: pl.Series, texts: pl.Expr) -> pl.Series:
    """The texts of rows with a value in the column, and `null` for the other rows."""
    return pl.select(pl.when(column.is_not_null()).then(texts).otherwise(pl.lit("null"))).to_series()
