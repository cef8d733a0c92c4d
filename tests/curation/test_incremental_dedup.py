"""Adding slices one by one gives the result of one run over everything."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dedup.duplicates import Duplicates, find_duplicates
from distill_dagster.curation.dedup.folding import MinHashScheme
from distill_dagster.curation.dedup.incremental import DedupState, DedupStateError
from tests.support.texts import tables

ORDER = [pl.col("rank")]
ONE = ResourceLimits(threads=1)
LONG = "the quick brown fox jumps over the lazy dog while seven wizards watch from a hill near the old mill"


def decisions(found: Duplicates) -> list[tuple[str, str, bool]]:
    return found.members.select("id", "cluster_id", "kept").rows()


@settings(max_examples=20)
@given(tables(most=20), st.lists(st.integers(0, 20), max_size=4), st.booleans(), st.booleans())
def test_slices_in_any_order_give_the_result_of_one_run(
    tmp_path_factory: pytest.TempPathFactory, table: pl.DataFrame, cuts: list[int], keep_numbers: bool, backwards: bool
) -> None:
    scheme = MinHashScheme(bands=64, rows_per_band=2, min_words=4, keep_numbers=keep_numbers)
    state = DedupState(tmp_path_factory.mktemp("state"), scheme, 0.5)
    places = sorted({0, table.height, *(cut for cut in cuts if cut < table.height)})
    slices = [table[start:stop] for start, stop in pairwise(places)]
    for number, part in enumerate(reversed(slices) if backwards else slices):
        state.add_slice(f"s{number}", part, table, order=ORDER, limits=ONE)
    full = find_duplicates(table, order=ORDER, scheme=scheme, threshold=0.5, limits=ONE)
    again = DedupState(state.folder, scheme, 0.5)  # everything is on disk
    assert decisions(again.read_duplicates()) == decisions(full)
    assert again.height == table.height


@settings(max_examples=10)
@given(tables(most=12), tables(most=12))
def test_a_slice_that_is_replaced_or_removed_leaves_no_trace(
    tmp_path_factory: pytest.TempPathFactory, one: pl.DataFrame, other: pl.DataFrame
) -> None:
    scheme = MinHashScheme(bands=64, rows_per_band=2, min_words=4)
    state = DedupState(tmp_path_factory.mktemp("state"), scheme, 0.5)
    other = other.with_columns(pl.format("o{}", "id").alias("id"))
    state.add_slice("a", one, order=ORDER, limits=ONE)
    state.add_slice("b", other, one, order=ORDER, limits=ONE)
    changed = one.reverse().head(max(1, one.height // 2)).with_columns(rank=pl.lit(0, pl.Int64))
    state.add_slice("a", changed, other, order=ORDER, limits=ONE)
    both = pl.concat([changed, other])
    full = find_duplicates(both, order=ORDER, scheme=scheme, threshold=0.5, limits=ONE)
    assert decisions(state.read_duplicates()) == decisions(full)
    touched = state.read_duplicates("a").members
    clusters = full.members.filter(pl.col("id").is_in(changed["id"].implode()))["cluster_id"].unique()
    assert (
        touched["id"].to_list() == full.members.filter(pl.col("cluster_id").is_in(clusters.implode()))["id"].to_list()
    )
    state.remove_slice("a")
    assert decisions(state.read_duplicates()) == decisions(
        find_duplicates(other, order=ORDER, scheme=scheme, threshold=0.5, limits=ONE)
    )
    assert len([path for path in state.folder.iterdir() if path.name.startswith("part-")]) == 1


@settings(max_examples=15)
@given(st.lists(tables(most=5), min_size=3, max_size=4), st.data())
def test_adding_and_removing_any_slices_gives_the_result_of_one_run(
    tmp_path_factory: pytest.TempPathFactory, slices: list[pl.DataFrame], data: st.DataObject
) -> None:
    scheme = MinHashScheme(bands=64, rows_per_band=2, min_words=4)
    slices = [one.with_columns(pl.format(f"{n}-{{}}", "id").alias("id")) for n, one in enumerate(slices)]
    texts = pl.concat(slices)
    state = DedupState(tmp_path_factory.mktemp("state"), scheme, 0.5)
    present = {str(n) for n in range(len(slices))}
    named = pl.concat([one.with_columns(slice=pl.lit(str(n))) for n, one in enumerate(slices)])
    state.add_all_slices(named.sample(fraction=1, shuffle=True, seed=1), order=ORDER, limits=ONE)
    for number in data.draw(st.lists(st.integers(0, len(slices) - 1), max_size=6)):
        if str(number) in present:
            state.remove_slice(str(number))
        else:
            state.add_slice(str(number), slices[number], texts, order=ORDER, limits=ONE)
        present ^= {str(number)}
        remaining = [one for n, one in enumerate(slices) if str(n) in present]
        full = find_duplicates(
            pl.concat([texts.clear(), *remaining]), order=ORDER, scheme=scheme, threshold=0.5, limits=ONE
        )
        assert decisions(state.read_duplicates()) == decisions(full)
        assert state.read_duplicates().pairs.is_unique().all()


def test_near_duplicates_stay_when_the_row_they_were_found_with_is_removed(tmp_path: Path) -> None:
    state = DedupState(tmp_path)
    slices = {"a": frame(0, LONG), "b": frame(1, LONG), "c": frame(2, f"{LONG} again")}
    state.add_all_slices(pl.concat([one.with_columns(slice=pl.lit(name)) for name, one in slices.items()]))
    state.remove_slice("a")
    assert decisions(state.read_duplicates()) == [("r1", "r1", True), ("r2", "r1", False)]


def test_many_parts_are_compared_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_dagster.curation.dedup.incremental.KEY_CHUNK_ROWS", 3)
    monkeypatch.setattr("distill_dagster.curation.dedup.duplicates.MAX_PENDING_PAIRS", 0)
    words = LONG.split()
    texts = [" ".join([*words[:n], "other", *words[n + 1 :]]) for n in range(12)] + [LONG] * 4
    table = pl.DataFrame({"id": [f"r{n:02}" for n in range(16)], "text": texts})
    state = DedupState(tmp_path, threshold=0.5)
    for number in range(8):
        state.add_slice(f"s{number}", table[2 * number : 2 * number + 2], table)
    monkeypatch.undo()
    full = find_duplicates(table, threshold=0.5)
    assert decisions(state.read_duplicates()) == decisions(full)
    assert full.rejected.height == 15


def frame(start: int, *texts: str) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"r{start + n}" for n in range(len(texts))], "text": texts})


def test_a_better_row_that_is_added_later_represents_its_cluster(tmp_path: Path) -> None:
    order = [pl.col("teacher")]
    first = frame(0, LONG, "unlike").with_columns(teacher=pl.lit(True))
    state = DedupState(tmp_path)
    state.add_slice("a", first, order=order)
    state.add_slice("b", frame(2, LONG + "!").with_columns(teacher=pl.lit(False)), first, order=order)
    assert decisions(state.read_duplicates()) == [("r0", "r2", False), ("r2", "r2", True)]


def test_only_texts_of_candidates_are_read_and_checked(tmp_path: Path) -> None:
    first = frame(0, LONG, "unlike anything")
    state = DedupState(tmp_path)
    state.add_slice("a", first)
    new = frame(2, LONG + " now")
    with pytest.raises(DedupStateError, match="Pass their texts"):
        state.add_slice("b", new)
    with pytest.raises(DedupStateError, match="r0 of slice a is missing"):
        state.add_slice("b", new, first[1:])
    with pytest.raises(DedupStateError, match="r0 of slice a has changed"):
        state.add_slice("b", new, frame(0, "changed", "unlike anything"))
    assert [part.name for part in state.parts] == ["a"]
    state.add_slice("b", new, first[:1])
    assert state.read_duplicates().rejected["id"].to_list() == ["r2"]


def test_another_scheme_or_a_lower_threshold_is_refused(tmp_path: Path) -> None:
    DedupState(tmp_path, threshold=0.7).add_slice("a", frame(0, LONG, LONG.replace("lazy", "old")))
    with pytest.raises(DedupStateError, match="another scheme"):
        DedupState(tmp_path, MinHashScheme(ngram=2))
    with pytest.raises(DedupStateError, match="contains pairs from a similarity"):
        DedupState(tmp_path, threshold=0.6)
    assert DedupState(tmp_path, threshold=0.7).read_duplicates().rejected.height == 1
    strict = DedupState(tmp_path, threshold=0.95)  # a higher threshold filters the stored pairs
    assert strict.read_duplicates().rejected.height == 0
    strict.add_slice("b", frame(2, LONG.replace("lazy", "new")), frame(0, LONG, LONG.replace("lazy", "old")))
    assert strict.read_duplicates().rejected.height == 0
    assert DedupState(tmp_path, threshold=0.7).read_duplicates().rejected.height == 2


def test_a_half_written_state_is_ignored(tmp_path: Path) -> None:
    state = DedupState(tmp_path)
    state.add_slice("a", frame(0, LONG, LONG))
    (tmp_path / "part-99.parquet").write_bytes(b"cut off")
    (tmp_path / "pairs-99.parquet").write_bytes(b"cut off")
    again = DedupState(tmp_path)
    assert again.read_duplicates().rejected["id"].to_list() == ["r1"]
    again.add_slice("b", frame(2, LONG), frame(0, LONG, LONG))
    assert again.read_duplicates().rejected["id"].to_list() == ["r1", "r2"]
    assert not (tmp_path / "part-99.parquet").exists()


def test_the_stored_size_per_row_is_small(tmp_path: Path) -> None:
    from distill_dagster.core.hashing import hash_content

    texts = [f"{LONG} {hash_content(n)} {hash_content([n])}" for n in range(5000)]
    table = pl.DataFrame({"id": [hash_content(text)[:32] for text in texts], "text": texts})
    state = DedupState(tmp_path)
    state.add_slice("a", table)
    assert state.size_bytes / state.height < 150
