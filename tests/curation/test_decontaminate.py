"""Every kind of planted leak is found and named; rows that only look like a leak are not."""

from __future__ import annotations

import random
import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup.decontaminate import find_contamination
from distill_dagster.curation.dedup.folding import MinHashScheme
from tests.support.texts import exact_key, fold, shingle_set, tables

ONE = ResourceLimits(threads=1)
LONG = "a farmer has twelve cows and sells five of them at the market before noon how many cows are left on the farm"
SHORT = "who wrote the second book of the old trilogy"  # 9 words


def frame(*texts: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": [f"r{n}" for n in range(len(texts))], "text": texts}, {"id": pl.String, "text": pl.String}
    )


def golden(*texts: str) -> pl.DataFrame:
    return frame(*texts).with_columns(pl.col("id").str.replace("r", "g"))


def hits(rows: pl.DataFrame, items: pl.DataFrame, **more: object) -> list[tuple[str, str, str, float]]:
    found = find_contamination(rows, items, **more).hits  # type: ignore[arg-type]
    return [(row, item, kind, round(overlap, 3)) for row, item, kind, overlap in found.iter_rows()]


def test_every_kind_of_leak_is_named() -> None:
    rows = frame(
        LONG.upper() + " ",
        LONG.replace("noon", "dusk"),
        f"Here is a riddle that I like. {LONG}? Explain each of your steps in a few simple words, please.",
        "and sells five of them at the market before noon how many cows",
        f"Tell me, {SHORT.replace('who', 'WHO')}? And when was it printed for the first time in the north?",
        "who wrote the second book about the old trilogy",
        "a farmer has a dog and sells milk at the market every day",
        "yes",
        "Yes!",
        "+ yes",
    )
    assert hits(rows, golden(LONG, SHORT, "yes")) == [
        ("r0", "g0", "exact", 1.0),
        ("r1", "g0", "near", 0.75),
        ("r2", "g0", "item_in_row", 1.0),
        ("r3", "g0", "row_in_item", 1.0),
        ("r4", "g1", "item_in_row", 1.0),
        ("r7", "g2", "exact", 1.0),
        ("r8", "g2", "exact", 1.0),
        ("r9", "g2", "item_in_row", 1.0),
    ]


def test_half_of_a_long_item_counts_and_less_does_not() -> None:
    words = LONG.split()
    half = " ".join(words[:14]) + " with many other words that follow and mean something else in the end"
    less = " ".join(words[:11]) + " with many other words that follow and mean something else in the end"
    assert hits(frame(half, less), golden(LONG)) == [("r0", "g0", "item_in_row", round(10 / 19, 3))]
    assert [hit[0] for hit in hits(frame(half, less), golden(LONG), min_overlap=0.35)] == ["r0", "r1"]


def test_a_template_shared_by_the_items_is_no_leak() -> None:
    template = "please read the following message of a customer and say what the customer wants from us today:"
    bodies = [f"item{n} one{n} two{n} three{n} four{n} five{n} six{n} and seven{n} eight{n}" for n in range(40)]
    items = golden(*(f"{template} {body}" for body in bodies))
    rows = frame(f"{template} nothing of that at all is here", f"{template} {bodies[3]}", f"so {bodies[5]}")
    # r2 contains only the rare n-grams of item 5
    assert [hit[:2] for hit in hits(rows, items)] == [("r1", "g3"), ("r2", "g5")]


def test_empty_tables_and_texts_have_no_hits() -> None:
    assert hits(frame(LONG, "", "!"), golden()) == []
    assert hits(frame(), golden(LONG)) == []
    assert hits(frame("", "?"), golden("", "!")) == []
    found = find_contamination(frame(LONG, LONG), golden(LONG, LONG))
    assert found.hits.height == 4
    assert found.ids.to_list() == ["r0", "r1"]
    assert found.height == 2
    with pytest.raises(ValueError, match="min_overlap"):
        find_contamination(frame(), golden(), min_overlap=0)
    with pytest.raises(ValueError, match="ngram"):
        find_contamination(frame(), golden(), ngram=14)


def brute(rows: pl.DataFrame, items: pl.DataFrame) -> dict[tuple[str, str], str]:
    """The definition applied to each pair. With fewer than four items, no n-gram is common."""

    def count(text: str) -> int:
        return len(re.findall(r"\w+", fold(text)))

    def contained(part: str, other: str, least: float = 0.0) -> bool:
        mine, theirs = shingle_set(part, 5), shingle_set(other, 5)
        shared = len(mine & theirs)
        whole = shared == len(mine) and shared >= least * len(theirs)
        enough = count(part) >= 13 and shared >= 0.5 * len(mine) and shared >= 4
        return bool(mine) and (whole or enough)

    found = {}
    for row, text in rows.select("id", "text").iter_rows():
        for item, other in items.select("id", "text").iter_rows():
            a, b = shingle_set(text, 3), shingle_set(other, 3)
            if exact_key(text) == exact_key(other) and a:
                found[row, item] = "exact"
            elif min(count(text), count(other)) >= 12 and len(a & b) / len(a | b) >= 0.7:
                found[row, item] = "near"
            elif contained(other, text):
                found[row, item] = "item_in_row"
            elif contained(text, other, 0.5):
                found[row, item] = "row_in_item"
    return found


@settings(max_examples=40)
@given(tables(most=12), st.randoms(use_true_random=False))
def test_hits_match_the_definition(table: pl.DataFrame, pick: random.Random) -> None:
    shuffled = table.sample(fraction=1, shuffle=True, seed=pick.randrange(100))
    items, rows = shuffled[:3], shuffled[3:]
    got = find_contamination(rows, items, limits=ONE)
    assert {(row, item): kind for row, item, kind, _ in got.hits.iter_rows()} == brute(rows, items)
    assert got.hits["overlap"].is_between(0.5, 1).all()
    again = find_contamination(
        rows.reverse().lazy(), items, limits=ResourceLimits(threads=3, batch_rows=1, verify_rows=1, memory_mb=0)
    )
    assert again.hits.equals(got.hits)


def test_planted_leaks_among_many_rows() -> None:
    pick = random.Random(3)
    vocabulary = [f"w{n}" for n in range(3000)]
    items = [" ".join(pick.choices(vocabulary, k=pick.randint(4, 60))) for _ in range(500)]
    rows = [" ".join(pick.choices(vocabulary, k=pick.randint(20, 120))) for _ in range(4000)]
    leaks = {f"r{place}" for place in pick.sample(range(4000), 300)}
    for place in sorted(leaks):
        row = int(place[1:])
        item = pick.choice(items)
        rows[row] = item if len(item.split()) < 5 else f"{rows[row]} {item} {' '.join(pick.choices(vocabulary, k=9))}"
    found = find_contamination(
        frame(*rows), golden(*items), scheme=MinHashScheme(min_words=5), limits=ResourceLimits(batch_rows=500)
    )
    assert set(found.ids) == leaks
