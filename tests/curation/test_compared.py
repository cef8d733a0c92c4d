"""What comparing found, kept for the next cut: the same decisions as comparing anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.curation.compared import Compared, clusters_of_kept, idents
from distill_dagster.curation.dataset import curate
from distill_dagster.curation.neardup.duplicates import find_duplicates
from distill_dagster.curation.neardup.text import Scheme
from distill_dagster.spec import CurationSpec
from distill_dagster.tables import SCORED, data_version, frame_of
from tests.curation.test_steps import LABELS, LONG, NEARLY, OTHER, items, row

WORDS = [f"w{n}" for n in range(14)]
SCHEME = Scheme(ngram=1, min_words=1)


@st.composite
def tables(draw: st.DrawFn) -> pl.DataFrame:
    """Texts of few words, so that many are near, and which of them are kept, in an order of preference."""
    texts = draw(st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=8), min_size=1, max_size=12))
    marks = draw(st.lists(st.sampled_from(["", ".", "!"]), min_size=len(texts), max_size=len(texts)))
    kept = draw(st.lists(st.booleans(), min_size=len(texts), max_size=len(texts)))
    order = draw(st.permutations(range(len(texts))))
    joined = [" ".join(words) + mark for words, mark in zip(texts, marks, strict=True)]
    frame = {"ident": [f"r{n:02}" for n in range(len(texts))], "text": joined, "kept": kept, "order": list(order)}
    return pl.DataFrame(frame, schema={"ident": pl.String, "text": pl.String, "kept": pl.Boolean, "order": pl.Int64})


@settings(max_examples=50, deadline=None)
@given(tables())
def test_all_pairs_cut_to_the_kept_rows_decide_as_comparing_these_alone(table: pl.DataFrame) -> None:
    def found(rows: pl.DataFrame) -> Any:
        return find_duplicates(rows, id="ident", order=[pl.col("order")], scheme=SCHEME, threshold=0.6)

    kept = table.filter("kept").sort("order")
    gone = clusters_of_kept(found(table).pairs, kept.select("ident"))
    alone = found(kept)
    assert sorted(gone["ident"]) == sorted(alone.rejected["id"])
    firsts = dict(alone.rejected.select("id", "cluster_id").iter_rows())
    assert dict(gone.select("ident", "first").iter_rows()) == firsts
    assert set(gone["like"]) <= set(kept["ident"])


def test_names_are_unique_and_the_same_in_any_order() -> None:
    rows = [row(LONG), row(LONG), row(LONG, slice="web"), row(LONG, teacher=None), row(OTHER, answer=None)]
    frame = pl.DataFrame(rows, schema=SCORED)
    found = idents(frame)
    assert found.n_unique() == 5
    assert sorted(idents(frame[::-1])) == sorted(found)


def test_a_threshold_compares_nothing_anew(tmp_path: Path) -> None:
    table = frame_of([row(LONG), row(NEARLY, confidence=0.95), row(OTHER, confidence=0.4)], SCORED, ("prompt_id",))
    golden = items("something that nobody asked")

    def cut(version: str, **filters: float) -> Any:
        spec = CurationSpec.model_validate({"validation_share": 0, "filters": filters})
        return curate(table, set(), LABELS, spec, items=golden, compared=Compared(tmp_path / "kept", version))

    first = cut("v1")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}
    assert {path.name for path in files} == {"near.parquet", "leaks.parquet"}
    strict = cut("v1", min_confidence=0.92)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()} == files
    assert strict.reasons()["near_duplicate"] == 0, "the other of the two was dropped before"
    spec = CurationSpec.model_validate({"validation_share": 0, "filters": {"min_confidence": 0.92}})
    anew = curate(table, set(), LABELS, spec, items=golden)
    assert data_version(strict.dataset) == data_version(anew.dataset)
    assert data_version(strict.rejected) == data_version(anew.rejected)
    assert data_version(cut("v2").dataset) == data_version(first.dataset)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "kept").iterdir()}.keys() == files.keys()
    assert all(path.stat().st_mtime_ns != before for path, before in files.items()), "other texts, compared anew"
