"""The query without compiled code finds every pair, and the kernel's pairs are among them, with the same numbers."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup import duplicates, pure
from distill_dagster.curation.dedup.folding import MinHashScheme
from tests.support.texts import brute_pairs, tables

ONE = ResourceLimits(threads=1, memory_mb=256)


@settings(max_examples=20)
@given(tables(), st.integers(1, 4), st.sampled_from([0.3, 0.5, 0.7, 1.0]), st.booleans())
def test_it_finds_every_pair_and_the_kernel_the_same(
    table: pl.DataFrame, ngram: int, threshold: float, keep_numbers: bool
) -> None:
    scheme = MinHashScheme(ngram=ngram, bands=128, rows_per_band=1, min_words=4, keep_numbers=keep_numbers)
    got = pure.find_duplicates_by_prefix_join(
        table, order=[pl.col("rank")], scheme=scheme, threshold=threshold, limits=ONE
    )
    truth = brute_pairs(dict(table.select("id", "text").iter_rows()), ngram, threshold, 4, keep_numbers)
    assert all(truth[left, right] == similarity for left, right, _, similarity in got.pairs.iter_rows())
    kernel = duplicates.find_duplicates(table, order=[pl.col("rank")], scheme=scheme, threshold=threshold, limits=ONE)
    assert got.pairs.equals(kernel.pairs)
    assert got.members.equals(kernel.members)
    assert set(got.members["id"]) == {id_ for pair in truth for id_ in pair}


def test_the_usual_scheme_verifies_the_same_pairs(tmp_path: Path) -> None:
    """300 texts with copies of every likeness from 0.4 to 1, and the bands that are the default."""
    import random

    pick = random.Random(5)
    vocabulary = [f"w{n}" for n in range(4000)]
    texts: list[str] = []
    for _ in range(60):
        words = pick.choices(vocabulary, k=60)
        for edits in range(5):
            copy = list(words)
            for place in pick.sample(range(60), edits):
                copy[place] = pick.choice(vocabulary)
            texts.append(" ".join(copy))
    table = pl.DataFrame({"id": [f"r{n:03}" for n in range(len(texts))], "text": texts})
    exact = pure.find_duplicates_by_prefix_join(table, limits=ONE).pairs
    kernel = duplicates.find_duplicates(table, limits=ONE).pairs
    both = exact.join(kernel, on=["left", "right", "kind", "similarity"], how="semi")
    assert both.height == kernel.height  # what the kernel verified is true to the last digit
    assert both.height >= 0.99 * exact.height > 200


def test_it_spills_and_cleans_up(tmp_path: Path) -> None:
    texts = [" ".join(f"w{(n * 7 + i) % 9000}" for i in range(120)) for n in range(3000)]
    table = pl.DataFrame({"id": [f"r{n:04}" for n in range(3000)], "text": texts})
    limits = ResourceLimits(threads=1, memory_mb=64, spill=tmp_path)
    got = pure.find_duplicates_by_prefix_join(table, limits=limits)
    assert got.members.equals(pure.find_duplicates_by_prefix_join(table, limits=ResourceLimits(threads=2)).members)
    assert got.rejected.height > 2000
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="threshold"):
        pure.find_duplicates_by_prefix_join(table, threshold=1.5)
