"""Semantic duplicates, with the packaged MiniLM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup.semantic import BLOCK_ROWS, find_close_pairs, find_semantic_duplicates
from distill_dagster.student.sentences import SentenceEmbedder

TEXTS = [
    "How do I get my money back?",
    "How can I get my money back?",
    "My parcel has not arrived yet.",
    "HOW DO I GET MY MONEY  BACK?",
    "",
    "Where can I see my invoices?",
    "",
]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> SentenceEmbedder:
    return SentenceEmbedder(tmp_path_factory.mktemp("models"))


def test_rows_with_the_same_meaning_are_found_in_any_order(embedder: SentenceEmbedder, tmp_path: Path) -> None:
    table = pl.DataFrame({"id": [f"r{n}" for n in range(len(TEXTS))], "text": TEXTS, "rank": [1, 0, 0, 1, 0, 0, 0]})
    found = find_semantic_duplicates(table, embedder.embed, order=[pl.col("rank")], threshold=0.95)
    assert found is not None
    assert found.members.select("id", "cluster_id", "kind").rows() == [
        ("r0", "r1", "exact"),
        ("r1", "r1", "semantic"),
        ("r3", "r1", "exact"),
        ("r4", "r4", "exact"),
        ("r6", "r4", "exact"),
    ]
    assert 0.95 <= found.members.row(1, named=True)["similarity"] < 1
    table.reverse().write_parquet(tmp_path / "rows.parquet")
    again = find_semantic_duplicates(
        tmp_path / "rows.parquet",
        embedder.embed,
        order=[pl.col("rank")],
        threshold=0.95,
        limits=ResourceLimits(batch_rows=2),
    )
    assert again is not None
    assert again.members.equals(found.members)


def test_a_table_above_the_limit_is_not_compared() -> None:
    def embed(texts: list[str]) -> np.ndarray:
        return np.eye(len(texts), dtype=np.float32)

    table = pl.DataFrame({"id": ["a", "b", "c"], "text": ["x", "y", "z"]})
    assert find_semantic_duplicates(table, embed, most_rows=2) is None
    found = find_semantic_duplicates(table, embed, most_rows=3)
    assert found is not None
    assert found.members.is_empty()


def test_comparing_in_blocks_finds_every_pair() -> None:
    pick = np.random.default_rng(2)
    vectors = pick.normal(size=(BLOCK_ROWS + 300, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    left, right, cosine = find_close_pairs(vectors, 0.97)
    everything = np.round(vectors.astype(np.float64) @ vectors.T.astype(np.float64), 4)
    expected = {(a, b) for a, b in zip(*np.nonzero(np.triu(everything, 1) >= 0.9701), strict=True)}
    got = set(zip(left.tolist(), right.tolist(), strict=True))
    assert expected <= got
    assert (cosine >= 0.97).all()
    assert len(got) < len(expected) * 1.2
