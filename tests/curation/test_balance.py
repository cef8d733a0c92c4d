"""Caps, floors and the stratified split, on random tables."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from distill_dagster.config.balance import BalanceSpec
from distill_dagster.curation.dataset.balance import (
    OVER_CAP,
    balance_rows,
    count_below_floors,
    order_farthest_first,
    restore_to_floors,
    select_stratified,
)

SLICES, LABELS, LEVELS = ("api", "web"), ("refund", "login", "crash"), ("easy", "hard", None)
SCHEMA = pl.Schema(
    {
        "prompt_id": pl.String,
        "slice": pl.String,
        "answer": pl.String,
        "axes": pl.String,
        "teacher": pl.String,
        "confidence": pl.Float64,
        "text": pl.String,
    }
)


def row(number: int, slice_: str, label: str, level: str | None, person: bool, confidence: float) -> dict[str, Any]:
    return {
        "prompt_id": f"p{number}",
        "slice": slice_,
        "answer": json.dumps(label),
        "axes": json.dumps({"difficulty": level}) if level else None,
        "teacher": None if person else "t",
        "confidence": confidence,
        "text": f"{label} {number}",
    }


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    one = st.tuples(
        st.sampled_from(SLICES), st.sampled_from(LABELS), st.sampled_from(LEVELS), st.booleans(), st.floats(0, 1)
    )
    found = draw(st.lists(one, max_size=30))
    return pl.DataFrame([row(n, *values) for n, values in enumerate(found)], schema=SCHEMA)


counts = st.one_of(
    st.integers(0, 6), st.dictionaries(st.sampled_from(SLICES + LABELS + ("easy", "hard")), st.integers(0, 6))
)
fields = st.dictionaries(st.sampled_from(["slice", "label", "difficulty"]), counts)
specs = st.builds(
    BalanceSpec,
    max_rows=st.one_of(st.none(), st.integers(1, 20)),
    caps=fields,
    floors=fields,
    choice=st.sampled_from(["best", "random", "diverse"]),
)


def embed(texts: list[str]) -> np.ndarray:
    rng = [np.random.default_rng(abs(hash_of(text))) for text in texts]
    found = np.array([one.normal(size=8) for one in rng], dtype=np.float32).reshape(len(texts), 8)
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode(), "big") % 2**32


def values(rows: pl.DataFrame, field: str) -> list[str | None]:
    if field == "slice":
        return rows["slice"].to_list()
    if field == "label":
        return [json.loads(answer) for answer in rows["answer"]]
    return [json.loads(axes)["difficulty"] if axes else None for axes in rows["axes"]]


def limit(counts: int | dict[str, int], value: str) -> int | None:
    return counts.get(value) if isinstance(counts, dict) else counts


@settings(max_examples=60, deadline=None)
@given(tables(), specs, st.randoms())
def test_caps_hold_and_no_row_is_lost_in_any_order(rows: pl.DataFrame, spec: BalanceSpec, random: Any) -> None:
    cut = balance_rows(rows, spec, 3, embed)
    assert cut.height == rows.height
    assert cut.filter(pl.col("drop_reason").is_null() != pl.col("drop_detail").is_null()).is_empty()
    assert set(cut["drop_reason"]) <= {None, OVER_CAP}
    kept, left = (cut.filter(pl.col("drop_reason").is_null()), cut.filter(pl.col("drop_reason").is_not_null()))
    assert spec.max_rows is None or kept.height <= spec.max_rows
    full: dict[tuple[str, str], bool] = {}
    for field, counts in spec.caps.items():
        for value, number in Counter(v for v in values(kept, field) if v is not None).items():
            most = limit(counts, value)
            assert most is None or number <= most
            full[field, value] = number == most
        full |= {(field, v): True for v in values(left, field) if v is not None and limit(counts, v) == 0}
    # A row is left out only where one of its caps, or the whole, is full.
    for n in range(left.height):
        capped = any(full.get((field, own)) for field in spec.caps if (own := values(left[n], field)[0]) is not None)
        assert capped or kept.height == spec.max_rows
    order = list(range(rows.height))
    random.shuffle(order)
    again = balance_rows(rows[order], spec, 3, embed) if order else cut
    assert again.sort("prompt_id").equals(cut.sort("prompt_id"))


def table(*parts: tuple[int, str, str, bool, float]) -> pl.DataFrame:
    """(how many, slice, label, whether a person answered, confidence)"""
    out: list[dict[str, Any]] = []
    for count, slice_, label, person, confidence in parts:
        out += [row(len(out) + n, slice_, label, None, person, confidence + n / 1000) for n in range(count)]
    return pl.DataFrame(out, schema=SCHEMA)


def kept(rows: pl.DataFrame, spec: BalanceSpec, seed: int = 0) -> list[str]:
    return balance_rows(rows, spec, seed, embed).filter(pl.col("drop_reason").is_null())["prompt_id"].to_list()


def test_answers_of_people_stay_then_the_highest_confidence() -> None:
    rows = table((2, "api", "refund", True, 0.0), (4, "api", "refund", False, 0.5))
    assert kept(rows, BalanceSpec(caps={"label": 4})) == ["p0", "p1", "p4", "p5"]
    details = balance_rows(rows, BalanceSpec(caps={"label": 4}), 0)["drop_detail"].drop_nulls().to_list()
    assert details == ["cap of label refund: 4"] * 2


def test_a_floor_is_not_cut_by_max_rows() -> None:
    rows = table((10, "api", "refund", False, 0.9), (3, "web", "login", False, 0.1))
    assert Counter(i in kept(rows, BalanceSpec(max_rows=5)) for i in ("p10", "p11", "p12")) == {False: 3}
    spec = BalanceSpec(max_rows=5, floors={"label": 2})
    assert sorted(kept(rows, spec)) == ["p11", "p12", "p7", "p8", "p9"]
    assert count_below_floors(rows, BalanceSpec(floors={"label": {"login": 4, "crash": 1}})) == {
        "label login": 3,
        "label crash": 0,
    }
    assert count_below_floors(rows, BalanceSpec(floors={"label": 3})) == {}


def test_random_depends_on_the_seed_alone() -> None:
    rows = table((40, "api", "refund", False, 0.9))
    spec = BalanceSpec(max_rows=10, choice="random")
    assert kept(rows, spec, 1) == kept(rows, spec, 1)
    assert kept(rows, spec, 1) != kept(rows, spec, 2)


def test_diverse_keeps_one_of_similar_rows() -> None:
    rows = table((6, "api", "refund", False, 0.9))
    places = {0: 0, 1: 0, 2: 0, 3: 1, 4: 1, 5: 2}  # three heaps
    vectors = np.eye(3, dtype=np.float32)[[places[n] for n in range(6)]]
    found = balance_rows(rows, BalanceSpec(max_rows=3, choice="diverse"), 0, lambda texts: vectors)
    stays = found.with_row_index("n").filter(pl.col("drop_reason").is_null())["n"].to_list()
    assert sorted(places[n] for n in stays) == [0, 1, 2]


def test_farthest_first_covers_within_twice_the_best_radius() -> None:
    """Against every choice of two centres (Gonzalez 1985)."""
    rng = np.random.default_rng(5)
    points = rng.normal(size=(12, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    order = order_farthest_first(points, 2)
    assert sorted(order.tolist()) == list(range(12))
    assert order[0] == 0

    def radius(centres: list[int]) -> float:
        apart = np.linalg.norm(points[:, None] - points[centres][None], axis=2)
        return float(apart.min(axis=1).max())

    best = min(radius([a, b]) for a in range(12) for b in range(a))
    assert radius(order[:2].tolist()) <= 2 * best
    assert order_farthest_first(np.zeros((0, 3)), 2).tolist() == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 40)), max_size=60), st.floats(0, 0.9))
def test_the_split_keeps_groups_whole_and_shares_near(rows: list[tuple[str, int]], share: float) -> None:
    frame = pl.DataFrame(
        [(stratum, f"{stratum}{group:02}") for stratum, group in rows],
        schema={"stratum": pl.String, "group": pl.String},
        orient="row",
    )
    side = select_stratified(frame["stratum"], frame["group"], share)
    found = frame.with_columns(side=side)
    assert (found.group_by("group").agg(pl.col("side").n_unique())["side"] == 1).all()
    for (stratum,), part in found.group_by("stratum"):
        largest = part.group_by("group").len()["len"].max()
        assert isinstance(largest, int)
        assert abs(sum(part["side"]) - share * part.height) <= largest / 2 + 1e-9, stratum


def test_a_share_of_zero_takes_no_row() -> None:
    strata = pl.Series(["a"] * 5)
    assert not select_stratified(strata, pl.Series([f"g{n}" for n in range(5)]), 0.0).any()


@pytest.mark.parametrize("wrong", [{"caps": {" ": 1}}, {"caps": {"label": -1}}, {"choice": "some"}, {"max_rows": 0}])
def test_a_mistake_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BalanceSpec(**wrong)


@settings(max_examples=60, deadline=None)
@given(tables(), st.integers(0, 6), st.floats(0, 1))
def test_a_floor_keeps_the_most_confident_of_the_unsure_rows(table: pl.DataFrame, floor: int, least: float) -> None:
    low = pl.col("confidence") < least
    reasons = pl.when(low).then(pl.lit("low_confidence")).otherwise(None)
    # Every fifth row is dropped for another reason and never comes back.
    other = pl.when(pl.int_range(pl.len()) % 5 == 4).then(pl.lit("too_short")).otherwise(reasons)
    rows = table.with_columns(
        other.alias("drop_reason"),
        pl.lit("why").alias("drop_detail"),
        pl.col("prompt_id").alias("ident"),
        text_key="prompt_id",
    ).with_columns(pl.when(pl.col("drop_reason").is_null()).then(None).otherwise("drop_detail").alias("drop_detail"))
    found = restore_to_floors(rows, BalanceSpec(floors={"label": floor}))
    assert found.drop("drop_reason", "drop_detail").equals(rows.drop("drop_reason", "drop_detail"))
    assert found["drop_reason"].is_null().equals(found["drop_detail"].is_null())
    for label in LABELS:
        before, after = (one.filter(pl.col("answer") == json.dumps(label)) for one in (rows, found))
        is_unsure = pl.col("drop_reason") == "low_confidence"
        kept, unsure = before.filter(pl.col("drop_reason").is_null()), before.filter(is_unsure)
        now = after.filter(pl.col("drop_reason").is_null())
        assert now.height == min(max(floor, kept.height), kept.height + unsure.height)
        assert set(kept["ident"]) <= set(now["ident"])
        back = unsure.filter(pl.col("ident").is_in(now["ident"].to_list()))
        still = after.filter(is_unsure)
        if back.height and still.height:
            assert min(back["confidence"]) >= max(still["confidence"])
