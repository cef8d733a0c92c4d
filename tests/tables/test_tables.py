"""Tables: declared columns, content versions, and writing that is all or nothing."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.tables import data_versions, schemas
from distill_dagster.tables.data_versions import VOLATILE_COLUMNS, compute_data_version
from distill_dagster.tables.parquet import write_parquet
from distill_dagster.tables.schemas import COMPLETIONS, build_frame, conform_to_schema


def completion(n: int, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(COMPLETIONS)
    row |= {"completion_id": f"c{n}", "prompt_id": f"p{n}", "sample_index": 0, "status": "ok", "answer": '"refund"'}
    row |= {"soft_labels": [{"label": "refund", "prob": 0.75}, {"label": "login", "prob": 0.25}]}
    row |= {"latency_s": 0.5, "in_flight": 2, "requested_at": "2026-01-01", "cost_usd": 0.001}
    return row | changes


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return build_frame(rows, COMPLETIONS, ("prompt_id", "sample_index"))


ROWS = [completion(n) for n in range(5)]


@given(st.permutations(range(5)))
def test_the_order_of_rows_does_not_count(order: list[int]) -> None:
    turned = frame([ROWS[n] for n in order])
    assert compute_data_version(turned) == compute_data_version(frame(ROWS))
    assert turned.equals(frame(ROWS))


@pytest.mark.parametrize("column", ["latency_s", "in_flight", "requested_at", "cost_usd", "error"])
def test_volatile_columns_do_not_count(column: str) -> None:
    value: Any = 9 if COMPLETIONS[column].is_numeric() else "other"
    assert compute_data_version(frame([completion(0, **{column: value}), *ROWS[1:]])) == compute_data_version(
        frame(ROWS)
    )


@pytest.mark.parametrize("column", [c for c in COMPLETIONS if c not in (*VOLATILE_COLUMNS, "soft_labels")])
def test_every_other_column_counts(column: str) -> None:
    value: Any = 9 if COMPLETIONS[column].is_numeric() else "other"
    assert compute_data_version(frame([completion(0, **{column: value}), *ROWS[1:]])) != compute_data_version(
        frame(ROWS)
    )


def test_nested_values_count() -> None:
    other = completion(0, soft_labels=[{"label": "refund", "prob": 0.750001}, {"label": "login", "prob": 0.25}])
    assert compute_data_version(frame([other])) != compute_data_version(frame([completion(0)]))


TYPES: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "text": (pl.String, st.text() | st.sampled_from(['"', "\\", "\n", "\x00\x1f", "\x7f\u2028é😀", ""])),
    "number": (pl.Int64, st.integers(-(2**63), 2**63 - 1)),
    "share": (pl.Float64, st.floats(allow_nan=False, allow_infinity=False)),
    "flag": (pl.Boolean, st.booleans()),
    "soft_labels": (
        schemas.SOFT_LABELS,
        st.lists(st.fixed_dictionaries({"label": st.text(), "prob": st.floats(0, 1)})),
    ),
    "scores": (
        pl.Struct({"words": pl.Int64, "unused": pl.String, "language": pl.String}),
        st.fixed_dictionaries(
            {"words": st.none() | st.integers(0, 9), "unused": st.none(), "language": st.none() | st.text()}
        ),
    ),
}
VALUES = {name: st.none() | values for name, (_, values) in TYPES.items()}


@given(st.lists(st.fixed_dictionaries(VALUES), max_size=9), st.integers(1, 4))
def test_a_version_is_the_hash_of_every_row_as_canonical_json(rows: list[dict[str, Any]], at_once: int) -> None:
    found = pl.DataFrame(rows, schema={name: dtype for name, (dtype, _) in TYPES.items()})
    lines = "".join(to_canonical_json(row) + "\n" for row in found.rows())
    expected = hashlib.sha256((to_canonical_json(found.columns) + lines).encode()).hexdigest()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_versions, "HASH_BATCH_ROWS", at_once)
        assert compute_data_version(found) == compute_data_version(found.lazy()) == expected


def test_two_tables_are_not_one() -> None:
    assert compute_data_version(frame(ROWS[:2]), frame(ROWS[2:])) != compute_data_version(frame(ROWS))


def test_conform_names_what_is_wrong() -> None:
    good = frame(ROWS)
    with pytest.raises(schemas.SchemaError, match="missing: \\['answer'\\]"):
        conform_to_schema(good.drop("answer"), COMPLETIONS, ("prompt_id",))
    with pytest.raises(schemas.SchemaError, match="unknown: \\['more'\\]"):
        conform_to_schema(good.with_columns(more=1), COMPLETIONS, ("prompt_id",))
    with pytest.raises(schemas.SchemaError, match="declared type"):
        conform_to_schema(good.with_columns(prompt_tokens=pl.lit("many")), COMPLETIONS, ("prompt_id",))


def test_a_failing_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "t.parquet"
    write_parquet(frame(ROWS), path, {"k": "old"})
    before = path.read_bytes()
    real = pl.LazyFrame.sink_parquet

    def half(self: pl.LazyFrame, file: Path, **kwargs: Any) -> None:
        real(self, file, **kwargs)
        file.write_bytes(file.read_bytes()[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(pl.LazyFrame, "sink_parquet", half)
    with pytest.raises(OSError, match="no space left"):
        write_parquet(frame(ROWS[:1]), path, {"k": "new"})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["t.parquet"]


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, rows in (("a", ROWS), ("b", ROWS[::-1])):
        write_parquet(frame(rows), tmp_path / name, {"k": "v"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
