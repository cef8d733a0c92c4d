"""Data versions: a hash of a table's content, whatever the order or number of processes that made it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import polars as pl

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.tables.schemas import LATER_COLUMNS

HASH_BATCH_ROWS = 10_000
"""Rows whose text is made together for a data version."""


_JSON_ESCAPES = {char: to_canonical_json(char)[1:-1] for char in ('"', "\\", *map(chr, range(0x20)))}
"""What JSON escapes in a text."""


_ESCAPE_PATTERN = r'["\\\x00-\x1f]'


VOLATILE_COLUMNS = ("latency_s", "in_flight", "requested_at", "cost_usd", "source", "error", "judge_error")
"""Not part of a data version. An error's text may hold seconds or an address; that a row failed is in `status`."""


def compute_data_version(*frames: pl.DataFrame | pl.LazyFrame) -> str:
    """sha256 of canonical content without the volatile columns; never of file bytes. Queries are read in batches."""
    import numpy as np

    digest = hashlib.sha256()
    for frame in frames:
        kept = frame.select(_select_hashed_columns(frame))
        digest.update(to_canonical_json(kept.collect_schema().names()).encode())
        if isinstance(kept, pl.LazyFrame):
            parts: Iterator[pl.DataFrame] = iter(kept.collect_batches(chunk_size=HASH_BATCH_ROWS, maintain_order=True))
        else:
            parts = kept.iter_slices(HASH_BATCH_ROWS)
        for part in filter(len, parts):
            between = [text for column in part for text in (pl.lit(","), pl.lit(_encode_json(column)))]
            rows = pl.select(pl.concat_str(pl.lit("["), *between[1:], pl.lit("]\n"))).to_series().to_arrow()
            _, offsets, texts = rows.cast("large_string").buffers()
            ends = np.frombuffer(offsets, np.int64)[rows.offset : rows.offset + len(rows) + 1]
            digest.update(memoryview(texts)[ends[0] : ends[-1]])
    return digest.hexdigest()


def _select_hashed_columns(frame: pl.DataFrame | pl.LazyFrame) -> list[pl.Expr]:
    """The columns that count, of those that came later only those that hold something, and of scores as well: one that
    came later moves no hash of a table without it."""
    here = frame.collect_schema()
    scores: list[str] = [field.name for field in here["scores"].fields] if "scores" in here else []  # type: ignore[attr-defined]
    later = [name for name in LATER_COLUMNS if name in here and name != "scores" and "completion_ids" in here]
    asked = {name: pl.col(name) for name in later} | {f"scores.{n}": pl.col("scores").struct.field(n) for n in scores}
    found = frame.lazy().select(column.is_not_null().any().alias(name) for name, column in asked.items())
    held = found.collect(engine="streaming").row(0, named=True) if asked else {}
    fields = [pl.col("scores").struct.field(name) for name in scores if held[f"scores.{name}"]]
    whole = {"scores": pl.struct(fields).alias("scores")} if fields else {}
    empty = {name for name in later if not held[name]} | (set() if fields else {"scores"})
    return [whole.get(name, pl.col(name)) for name in here if name not in VOLATILE_COLUMNS and name not in empty]


def _encode_json(column: pl.Series) -> pl.Series:
    """Each value of a column as `canonical_json` writes it."""
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
        fields = sorted(column.struct.fields)
        named = [pl.lit(to_canonical_json(name) + ":") + _encode_json(column.struct.field(name)) for name in fields]
        return _enclose("{", pl.concat_str(named, separator=","), "}", column)
    if isinstance(column.dtype, pl.List):
        lengths = column.list.len().fill_null(0)
        inner = _encode_json(column.filter(lengths > 0).explode())
        most = len(inner) // len(column)
        if most and lengths.eq(most).all():  # of every prompt with one turn there are two
            each = [inner.gather_every(most, place) for place in range(most)]
            return _enclose("[", pl.concat_str(map(pl.lit, each), separator=","), "]", column)
        rows = pl.int_range(len(column), eager=True).repeat_by(lengths).explode().drop_nulls()
        joined = pl.DataFrame({"row": rows, "text": inner}).group_by("row").agg(pl.col("text").str.join(","))
        texts = pl.Series([""]).new_from_index(0, len(column)).scatter(joined["row"], joined["text"])
        return _enclose("[", pl.lit(texts), "]", column)
    return pl.Series([to_canonical_json(value) for value in column.to_list()], dtype=pl.String)


def _enclose(start: str, texts: pl.Expr, end: str, column: pl.Series) -> pl.Series:
    """The texts between two brackets where the column has a value, else null."""
    whole = pl.concat_str(pl.lit(start), texts, pl.lit(end))
    return pl.select(pl.when(column.is_not_null()).then(whole).otherwise(pl.lit("null"))).to_series()
