"""How rows are divided."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distill_dagster.new_task.split import LEAST, PARTS, Part, SplitUnit, apportion, choose_sizes, split_units


def units(**counts: int) -> list[SplitUnit]:
    return [SplitUnit(f"{name} {n}", name.strip("_") or None) for name, count in counts.items() for n in range(count)]


def test_default_sizes_of_small_large_and_partly_labelled_tables() -> None:
    assert choose_sizes(300, 0, 4, {}) == {"golden": 90, "dev": 60, "examples": 60, "seeds": 2000}
    assert choose_sizes(100_000, 0, 4, {}) == {"golden": 400, "dev": 200, "examples": 200, "seeds": 2000}
    assert choose_sizes(300, 5_000, 4, {})["examples"] == 150, "others are the seeds, so all labelled rows have a use"
    assert choose_sizes(300, 0, 4, {"golden": 120, "seeds": 10}) == {
        "golden": 120, "dev": 60, "examples": 60, "seeds": 10
    }  # fmt: skip
    assert choose_sizes(30, 0, 7, {}) == {"golden": 9, "dev": 7, "examples": 14, "seeds": 2000}


def test_every_label_is_in_every_part_in_proportion() -> None:
    found = units(often=200, seldom=40, rare=4)
    parts = split_units(found, {"golden": 60, "dev": 40, "examples": 40, "seeds": 500}, seed=0)
    counts = Counter((part, unit.label) for unit in found for part in [parts[unit.key]])
    assert Counter(parts.values()) == {"golden": 60, "dev": 40, "examples": 40, "seeds": 104}
    for part, least in LEAST.items():
        assert counts[part, "rare"] == least
        assert counts[part, "often"] > 3 * counts[part, "seldom"]


def test_the_order_of_the_rows_does_not_matter_and_the_seed_does() -> None:
    found = units(a=30, b=30, _=20)
    sizes: dict[Part, int] = {"golden": 12, "dev": 8, "examples": 8, "seeds": 30}
    first = split_units(found, sizes, seed=0)
    shuffled = random.Random(1).sample(found, len(found))
    assert split_units(shuffled, sizes, seed=0) == first
    assert split_units(found, sizes, seed=1) != first
    assert sum(part is None for part in first.values()) == 80 - 12 - 8 - 8 - 30


def test_a_unit_without_label_is_a_seed_only() -> None:
    found = units(a=10, b=10, _=10)
    parts = split_units(found, choose_sizes(20, 10, 2, {}), seed=0)
    assert {parts[unit.key] for unit in found if unit.label is None} == {"seeds"}


@pytest.mark.parametrize(("total", "shares"), [(10, [6, 3, 1]), (3, [1, 1, 1]), (0, [1, 1, 1]), (100, [60, 30, 10])])
def test_apportion_keeps_totals_between_least_and_most(total: int, shares: list[int]) -> None:
    assert apportion(total, [60, 30, 10], 1, [60, 30, 10]) == shares


@given(
    counts=st.lists(st.integers(4, 60), min_size=1, max_size=8),
    free=st.integers(0, 40),
    golden=st.integers(1, 200),
    dev=st.integers(1, 200),
    examples=st.integers(1, 200),
)
def test_no_label_misses_a_part_whatever_the_sizes(
    counts: list[int], free: int, golden: int, dev: int, examples: int
) -> None:
    found = [SplitUnit(f"{label} {n}", str(label)) for label, count in enumerate(counts) for n in range(count)]
    found += [SplitUnit(f"free {n}", None) for n in range(free)]
    parts = split_units(found, {"golden": golden, "dev": dev, "examples": examples, "seeds": 1000}, seed=3)
    assert parts.keys() == {unit.key for unit in found}
    by_label = Counter((unit.label, parts[unit.key]) for unit in found)
    for label in range(len(counts)):
        assert all(by_label[str(label), part] >= least for part, least in LEAST.items())
    assert set(parts.values()) <= set(PARTS)
