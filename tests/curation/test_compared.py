"""What comparing found, kept for the next cut: the same decisions as comparing anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.config import CurationSpec
from distill_dagster.curation.dataset.comparison_cache import ComparisonCache, cluster_kept_rows
from distill_dagster.curation.dataset.curate import curate_dataset
from distill_dagster.curation.dataset.slim_rows import CandidateTexts, build_candidate_ids
from distill_dagster.curation.dedup.duplicates import find_duplicates
from distill_dagster.curation.dedup.folding import MinHashScheme
from distill_dagster.curation.task_view import TaskView
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.schemas import SCORED, build_frame
from tests.curation.test_steps import LABELS, LONG, NEARLY, OTHER, items, row
from tests.support.kinds import build_task

WORDS = [f"w{n}" for n in range(14)]
SCHEME = MinHashScheme(ngram=1, min_words=1)


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
def test_clusters_of_kept_rows_equal_those_of_a_comparison_of_kept_rows(table: pl.DataFrame) -> None:
    def found(rows: pl.DataFrame) -> Any:
        return find_duplicates(rows, id="ident", order=[pl.col("order")], scheme=SCHEME, threshold=0.6)

    kept = table.filter("kept").sort("order")
    gone = cluster_kept_rows(found(table).pairs, kept.select("ident"))
    alone = found(kept)
    assert sorted(gone["ident"]) == sorted(alone.rejected["id"])
    firsts = dict(alone.rejected.select("id", "cluster_id").iter_rows())
    assert dict(gone.select("ident", "first").iter_rows()) == firsts
    assert set(gone["like"]) <= set(kept["ident"])


def test_candidate_ids_are_unique_and_the_same_in_any_order() -> None:
    rows = [row(LONG), row(LONG), row(LONG, slice="web"), row(LONG, teacher=None), row(OTHER, answer=None)]
    frame = pl.DataFrame(rows, schema=SCORED)
    found = build_candidate_ids(frame)
    assert found.n_unique() == 5
    assert sorted(build_candidate_ids(frame[::-1])) == sorted(found)


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_changed_threshold_compares_nothing_again(tmp_path: Path) -> None:
    table = build_frame([row(LONG), row(NEARLY, confidence=0.95), row(OTHER, confidence=0.4)], SCORED, ("prompt_id",))
    golden = items("something that nobody asked")

    def cut(held_out: pl.DataFrame = golden, rows: pl.DataFrame = table, **filters: float) -> Any:
        spec = CurationSpec.model_validate({"validation_share": 0, "filters": filters})
        kept, anew = (
            curate_dataset(rows, set(), LABELS, spec, items=held_out, cache=ComparisonCache(folder))
            for folder in (tmp_path / "kept", None)
        )
        assert compute_data_version(kept.dataset) == compute_data_version(anew.dataset)
        assert compute_data_version(kept.rejected) == compute_data_version(anew.rejected)
        return kept

    cut()
    first = written(tmp_path / "kept")
    assert first.keys() == {"near.parquet", "leaks.parquet"}
    strict = cut(min_confidence=0.92)
    assert written(tmp_path / "kept") == first
    assert strict.count_reasons()["near_duplicate"] == 0, "the other of the two was dropped before"
    assert cut(items(OTHER)).count_reasons()["contaminated"] == 1
    golden_moved = written(tmp_path / "kept")
    assert golden_moved["near.parquet"] == first["near.parquet"]
    assert golden_moved["leaks.parquet"] != first["leaks.parquet"]
    cut(rows=table.with_columns(pl.lit("web").alias("slice")))
    assert all(time != golden_moved[name] for name, time in written(tmp_path / "kept").items())


def test_a_changed_answer_or_reasoning_is_compared_again(tmp_path: Path) -> None:
    """Where prompt and answer are compared, each part of what was said counts, and so does that a task reasons."""
    open_words, other_words = json.dumps(LONG), json.dumps(OTHER)
    asks = "Where is my parcel now?"

    def near(reasons: bool, rows: list[dict[str, Any]]) -> int:
        about = TaskView.from_task(build_task("qa", reasoning=reasons))
        table = build_frame([one | {"answer_kind": "text"} for one in rows], SCORED, ("prompt_id", "slice"))
        spec = CurationSpec.model_validate({"validation_share": 0})
        kept, anew = (
            curate_dataset(table, set(), [], spec, about, cache=ComparisonCache(folder))
            for folder in (tmp_path / "kept", None)
        )
        assert kept.rejected.equals(anew.rejected)
        return kept.count_reasons()["near_duplicate"]

    first, same = row(asks, answer=open_words, reasoning=LONG), row(f"{asks} Please", answer=open_words, reasoning=LONG)
    assert near(True, [first, same]) == 1
    assert near(True, [first, same | {"answer": other_words}]) == 0
    assert near(True, [first, same | {"reasoning": OTHER}]) == 0
    assert near(False, [first, same | {"reasoning": OTHER}]) == 1
    assert near(True, [first, same | {"reasoning": OTHER}]) == 0
    assert near(True, [first, same]) == 1


def test_only_changed_slices_are_searched_for_leaks(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def find(texts: pl.LazyFrame) -> pl.DataFrame:
        rows = texts.collect()
        asked.append(sorted(rows["slice"].unique()))
        return rows.filter(pl.col("text") == LONG).select(pl.col("ident").alias("id"), pl.lit("g").alias("golden_id"))

    def leaks(**texts: str) -> list[str]:
        rows = pl.DataFrame([{"prompt_id": f"{s}-{t[:8]}", "slice": s, "text": t} for s, t in texts.items()])
        known = rows.select("prompt_id", "slice", ident="prompt_id", content=pl.col("text").hash())
        seen = CandidateTexts(known.lazy(), rows.lazy(), lambda part: part["text"], ("text",))
        return list(ComparisonCache(tmp_path).find_by_slice("leaks", {"n": 1}, seen, find)["id"])

    assert leaks(a=LONG, b=OTHER, c=LONG) == [f"a-{LONG[:8]}", f"c-{LONG[:8]}"]
    assert leaks(a=LONG, b=LONG, c=LONG) == [f"{s}-{LONG[:8]}" for s in "abc"]
    assert leaks(a=LONG, b=LONG, c=LONG)
    assert leaks(b=LONG, c=OTHER) == [f"b-{LONG[:8]}"]
    assert asked == [["a", "b", "c"], ["b"], ["c"]]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), tables()), min_size=3, max_size=6), st.data())
def test_slice_by_slice_gives_the_dataset_of_one_cut(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[str, pl.DataFrame]], data: st.DataObject
) -> None:
    folder, slices = tmp_path_factory.mktemp("kept"), dict[str, list[dict[str, Any]]]()
    for name, table in changes:
        texts = [text or "nothing" for text in table["text"]]
        slices[name] = [row(text, slice=name, confidence=n / 20) for n, text in enumerate(texts, 1)]
        if data.draw(st.booleans()) and len(slices) > 1:
            del slices[next(iter(slices))]
        frame = build_frame(
            [one for rows in slices.values() for one in rows], SCORED, ("prompt_id", "slice", "confidence")
        )
        dedup = {"near": {"ngram": 1, "min_words": 1, "threshold": data.draw(st.sampled_from([0.5, 0.6]))}}
        spec = CurationSpec.model_validate({"filters": {"min_confidence": 0.1}, "dedup": dedup})
        golden = items(" ".join(WORDS[:6]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("distill_dagster.curation.dataset.comparison_cache.INCREMENTAL_MIN_ROWS", 0)
            patch.setattr(
                "distill_dagster.curation.dataset.comparison_cache.FULL_COMPARE_SHARE",
                data.draw(st.sampled_from([0.0, 0.9])),
            )
            kept = curate_dataset(frame, set(), LABELS, spec, items=golden, cache=ComparisonCache(folder))
        anew = curate_dataset(frame, set(), LABELS, spec, items=golden)
        assert kept.dataset.equals(anew.dataset)
        assert kept.rejected.equals(anew.rejected)
        assert kept.leaks.equals(anew.leaks)
