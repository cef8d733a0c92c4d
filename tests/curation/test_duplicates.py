"""Exact and near-duplicates of one table, compared with brute force."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup import folding
from distill_dagster.curation.dedup.duplicates import BUCKET_NEIGHBORS, find_components, find_duplicates
from distill_dagster.curation.dedup.folding import MinHashScheme, exact_key_expr, fold_non_ascii, folded_expr
from distill_dagster.curation.dedup.signatures import sign_texts
from distill_dagster.tables.messages import normalized_expr
from tests.support.texts import exact_key, find_clusters_by_brute_force, find_pairs_by_brute_force, tables
from tests.support.waiting import HANG_S

SURE = MinHashScheme(bands=64, rows_per_band=2, min_words=4)
"""Enough bands to find every pair with Jaccard 0.5 (it misses one with probability 1e-8)."""
LONG = "the quick brown fox jumps over the lazy dog while seven wizards watch from a hill near the old mill"

PINNED_EXACT = [7785765683550083596, 12602918401394811191]
PINNED_KEYS = [[3518915426, 777001619], [3880948069, 429749353]]
PINNED_NUMBERS = [0, 12246857945920972233]
PINNED_SCHEME = "6b4e275c726afc78"


def frame(*texts: str) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": [f"r{n}" for n in range(len(texts))], "text": texts}, {"id": pl.String, "text": pl.String}
    )


def found(table: pl.DataFrame, **more: object) -> dict[tuple[str, str], str]:
    """By pair of ids, its kind."""
    pairs = find_duplicates(table, **more).pairs  # type: ignore[arg-type]
    return {(row["left"], row["right"]): row["kind"] for row in pairs.to_dicts()}


@settings(max_examples=50)
@given(tables(), st.integers(1, 4), st.sampled_from([0.5, 0.7, 1.0]), st.booleans())
def test_pairs_and_clusters_are_those_of_brute_force(
    table: pl.DataFrame, ngram: int, threshold: float, keep_numbers: bool
) -> None:
    scheme = MinHashScheme(ngram=ngram, bands=64, rows_per_band=2, min_words=4, keep_numbers=keep_numbers)
    got = find_duplicates(table, order=[pl.col("rank")], scheme=scheme, threshold=threshold)
    rows = dict(table.select("id", "text").iter_rows())
    truth = find_pairs_by_brute_force(rows, ngram, threshold, 4, keep_numbers)
    clusters = find_clusters_by_brute_force(list(rows), truth)
    assert set(got.members["id"]) == set(clusters)
    for left, right, _, similarity in got.pairs.iter_rows():
        assert truth[left, right] == similarity
    rank = dict(table.select("id", "rank").iter_rows())
    for row in got.members.to_dicts():
        best = min(clusters[row["id"]], key=lambda id_: (rank[id_] is None, rank[id_] or 0, id_))
        assert row["cluster_id"] == best
        assert row["kept"] == (row["id"] == best)
        pair = tuple(sorted((row["id"], row["like"])))
        assert truth[pair] == row["similarity"]
    assert got.height == table.height
    assert got.rejected.height == len(clusters) - len(set(clusters.values()))


@settings(max_examples=15)
@given(tables(), st.randoms(use_true_random=False))
def test_order_threads_batches_and_source_change_nothing(table: pl.DataFrame, shuffler: random.Random) -> None:
    one = find_duplicates(table, scheme=SURE, threshold=0.5, limits=ResourceLimits(threads=1))
    shuffled = table.sample(fraction=1, shuffle=True, seed=shuffler.randrange(1000))
    small = ResourceLimits(threads=3, batch_rows=2, verify_rows=2, memory_mb=0)
    other = find_duplicates(shuffled.lazy(), scheme=SURE, threshold=0.5, limits=small)
    assert one.members.equals(other.members)
    assert one.pairs.equals(other.pairs)


def test_parquet_files_and_expressions_are_read(tmp_path: Path) -> None:
    table = frame(LONG, "something else", LONG.upper() + " too", "nothing").with_columns(answer=pl.lit("yes"))
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    table[:2].write_parquet(files[0])
    table[2:].write_parquet(files[1])
    expected = find_duplicates(table).members
    assert expected["id"].to_list() == ["r0", "r2"]
    assert find_duplicates(files).members.equals(expected)
    both = pl.concat_str("text", "answer", separator="\n")
    limits = ResourceLimits(spill=tmp_path / "spill")
    got = find_duplicates(files, text=both, id=pl.col("id").str.to_uppercase(), limits=limits).members
    assert got["id"].to_list() == ["R0", "R2"]
    assert list((tmp_path / "spill").iterdir()) == []


def test_exact_duplicates_may_differ_in_case_white_space_quiet_marks_and_unicode_spelling() -> None:
    table = frame(
        "Straße  ins\tTal", "STRASSE ins Tal ", "strasse ins tal +", "ﬁne", "FINE", "ΟΔΟΣ", "οδοσ", "x\u2028y", "x y",
        "é", "e\u0301", "a\x1cb", "A B", "", "  ", "\u2014", "\u2013", "a\u2014b!", "a-b", "(yes.)", "Yes?",
    )  # fmt: skip
    same = [{0, 1}, {3, 4}, {5, 6}, {7, 8}, {9, 10}, {11, 12, 17, 18}, {13, 14}, {19, 20}]
    got = find_duplicates(table).members
    assert set(got["kind"]) == {"exact"}
    clusters = got.group_by("cluster_id").agg("id")["id"].to_list()
    assert sorted(map(sorted, clusters)) == sorted(sorted(f"r{n}" for n in one) for one in same)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3.5", "3 5"),
        ("-3", "3"),
        ("5 + 3", "5 - 3"),
        ("a < b", "a > b"),
        ("not !x", "not x"),
        ("-x", "x"),
        ("10:30", "10 30"),
    ],
)
def test_significant_marks_are_part_of_the_exact_key(one: str, other: str) -> None:
    assert found(frame(one, other)) == {}


@settings(max_examples=150)
@given(st.lists(st.text("aAßſςΣ\t\u00a0\u2028ﬁé\u0301İ三각\u1100\u1161½.-3!?(—+,:", max_size=6), max_size=12))
def test_exact_hashes_are_equal_exactly_where_the_keys_are(texts: list[str]) -> None:
    table = frame(*texts)
    keys = table.select(exact_key_expr(folded_expr(pl.col("text"))))["text"].to_list()
    assert keys == [exact_key(text) for text in texts]
    limits = ResourceLimits(threads=1)
    hashes = (
        sign_texts([table["text"].to_arrow().cast("large_string")], MinHashScheme(), limits).exact.tolist()
        if texts
        else []
    )
    for i, one in enumerate(keys):
        for j, other in enumerate(keys):
            assert (one == other) == (hashes[i] == hashes[j]), (texts[i], texts[j])
    normalized = table.select(normalized_expr(pl.col("text")))["text"].to_list()
    assert len(set(zip(normalized, keys, strict=True))) == len(set(normalized))  # texts that were equal stay equal


@settings(max_examples=150)
@given(st.lists(st.text(max_size=8), max_size=8))
def test_fast_folding_equals_plain_folding(texts: list[str]) -> None:
    series = pl.Series("text", texts, dtype=pl.String)
    plain = series.to_frame().select(folded_expr(pl.col("text")))["text"].to_list()
    assert [" ".join(text.split()) for text in fold_non_ascii(series)] == plain


def test_short_rows_are_only_compared_exactly_by_default() -> None:
    table = frame("which of these is not a prime number", "which of these is not a prime number x", LONG, LONG + " x")
    assert found(table) == {("r2", "r3"): "near"}
    assert found(table, scheme=MinHashScheme(min_words=1)) == {("r0", "r1"): "near", ("r2", "r3"): "near"}


def test_rows_without_words_are_never_near() -> None:
    assert found(frame("!!!", "???", "!!!"), scheme=MinHashScheme(min_words=1)) == {("r0", "r2"): "exact"}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("3 apples", "4 apples", False),
        ("3 apples", "3 apples!", True),
        ("3.5 apples", "35 apples", False),
        ("-3 apples", "3 apples", False),
        ("1/2 apples", "1/3 apples", False),
        ("3 apples", "٣ apples", False),  # digits of another script count as another number
        ("３ apples", "3 apples.", True),  # full width is the same digit
        ("three apples", "3 apples", False),
    ],
)
def test_maths_rows_with_other_numbers_are_no_duplicates(one: str, other: str, same: bool) -> None:
    table = frame(f"{LONG} and then {one} fall from the tree", f"{LONG} and then {other} fall from the tree")
    assert bool(found(table, scheme=MinHashScheme(keep_numbers=True), threshold=0.5)) == same
    assert found(table, threshold=0.5)


def test_numbers_in_another_order_are_other_numbers() -> None:
    table = frame(f"{LONG} 3 cats and 5 dogs", f"{LONG} 5 cats and 3 dogs")
    assert found(table, threshold=0.5) == {("r0", "r1"): "near"}
    assert found(table, threshold=0.5, scheme=MinHashScheme(keep_numbers=True)) == {}


def test_scripts_without_spaces_are_compared_by_letter() -> None:
    one = "今日は天気がとても良いので公園まで散歩に行きました"
    table = frame(
        one, one.replace("公園", "図書館"), "昨日は雨が降っていたので家で本を読んでいました、とても楽しかった"
    )
    assert found(table, threshold=0.5) == {("r0", "r1"): "near"}


def test_the_kernel_and_the_pattern_agree_on_words() -> None:
    texts = [
        "ab_c—d éx ٣.٥ -3,500",
        "ไทย กขค x",
        "naïve — “quoted” 東京tower カナ",
        "한국어 문장 입니다",
        "a🙂b ½ x²",
        "",
    ]
    table = frame(*texts).with_columns(folded_expr(pl.col("text")))
    count = table.select(pl.col("text").str.extract_all(folding.WORD_PATTERN).list.len())["text"].to_list()
    signed = sign_texts(
        [frame(*texts)["text"].to_arrow().cast("large_string")], MinHashScheme(), ResourceLimits(threads=1)
    )
    assert signed.words.tolist() == count == [7, 7, 7, 3, 5, 0]


def test_a_large_bucket_takes_linear_work_and_stays_one_cluster() -> None:
    same = [f"{LONG} " + "and so on " * 30 + f"word{n}" for n in range(500)]
    got = find_duplicates(frame(*same))
    assert got.pairs.height <= len(same) * BUCKET_NEIGHBORS * MinHashScheme().bands
    assert got.members["cluster_id"].unique().to_list() == ["r0"]
    assert got.rejected.height == 499


def test_hashes_are_fixed() -> None:
    """Stored states contain them. If this test must change, raise HASH_VERSION."""
    signed = sign_texts([frame(LONG, "Straße 三 3.5!")["text"].to_arrow().cast("large_string")],
                  MinHashScheme(bands=2, rows_per_band=2, min_words=1, keep_numbers=True), ResourceLimits(threads=1))  # fmt: skip # noqa: E501
    assert folding.HASH_VERSION == 1
    assert signed.exact.tolist() == PINNED_EXACT
    assert [key.tolist() for key in signed.keys] == PINNED_KEYS
    assert signed.numbers.tolist() == PINNED_NUMBERS
    assert MinHashScheme().id == PINNED_SCHEME


def test_a_scheme_computes_its_recall_and_checks_its_settings() -> None:
    assert MinHashScheme().compute_recall(0.7) > 0.998
    assert MinHashScheme().compute_recall(0.2) < 0.05
    assert MinHashScheme(min_words=5).id != MinHashScheme().id != MinHashScheme(ngram=2).id
    with pytest.raises(ValueError, match="ngram"):
        MinHashScheme(ngram=0)
    with pytest.raises(ValueError, match="threshold"):
        find_duplicates(frame("a"), threshold=0)


def edge_lists(nodes: int) -> st.SearchStrategy[tuple[int, list[tuple[int, int]]]]:
    node = st.integers(0, nodes - 1)
    return st.tuples(st.just(nodes), st.lists(st.tuples(node, node)))


@given(st.integers(1, 30).flatmap(edge_lists))
def test_components_are_those_of_a_graph(case: tuple[int, list[tuple[int, int]]]) -> None:
    import scipy.sparse

    nodes, edges = case
    left, right = [a for a, b in edges if a != b], [b for a, b in edges if a != b]
    got = find_components(pl.Series(left, dtype=pl.UInt32), pl.Series(right, dtype=pl.UInt32), nodes).to_numpy()
    matrix = scipy.sparse.coo_matrix((np.ones(len(left)), (left, right)), (nodes, nodes))
    _, labels = scipy.sparse.csgraph.connected_components(matrix, directed=False)
    for label in set(labels):
        members = np.flatnonzero(labels == label)
        assert set(got[members]) == {members.min()}


def test_duplicate_ids_are_refused() -> None:
    table = frame(LONG, LONG, "other").with_columns(pl.lit("same").alias("id"))
    with pytest.raises(ValueError, match="Duplicate id: 'same'"):
        find_duplicates(table)


def test_the_default_scheme_finds_nearly_all_pairs_of_brute_force() -> None:
    """300 texts, with copies of every similarity from 0.4 to 1."""
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
    table = frame(*texts)
    scheme = MinHashScheme()
    truth = find_pairs_by_brute_force(dict(table.select("id", "text").iter_rows()), scheme.ngram, 0.7, scheme.min_words)
    pairs = find_duplicates(table, scheme=scheme, threshold=0.7).pairs
    assert all(truth[left, right] == similarity for left, right, _, similarity in pairs.iter_rows())
    assert len(truth) >= pairs.height >= 0.99 * len(truth) > 200


def test_an_empty_table_has_no_duplicates(tmp_path: Path) -> None:
    frame().write_parquet(tmp_path / "none.parquet")
    for source in (frame(), frame().lazy(), tmp_path / "none.parquet"):
        assert find_duplicates(source).members.is_empty()


def test_the_kernel_is_imported_at_first_use_and_needs_no_writable_cache(tmp_path: Path) -> None:
    code = """
import sys
import polars as pl
from distill_dagster.curation.dedup.duplicates import find_duplicates
assert "numba" not in sys.modules
table = pl.DataFrame({"id": ["a", "b"], "text": ["one", "One"]})
assert find_duplicates(table).members.height == 2
assert "numba" in sys.modules
"""
    environment = os.environ | {"NUMBA_CACHE_DIR": "/proc/nowhere"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=HANG_S)
