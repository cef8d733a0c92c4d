"""The same cut from a frame, a query and Parquet files, in one batch and part or in many."""

from __future__ import annotations

import functools
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill_dagster.config import CurationSpec
from distill_dagster.curation.dataset.comparison_cache import ComparisonCache
from distill_dagster.curation.dataset.curate import CuratedDataset, curate_dataset
from distill_dagster.curation.dataset.write_parts import assign_parts
from distill_dagster.curation.filters import collect_task_scorers, map_in_batches
from distill_dagster.curation.scores import add_scores
from distill_dagster.curation.task_view import TaskView
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.parquet import write_parquet
from distill_dagster.tables.schemas import SCORED
from tests.curation.test_steps import LABELS, items, row
from tests.support.kinds import build_task

WORDS = "my parcel came late and wet, write to jane.doe@example.org or nobody".split()  # noqa: SIM905
SPECS: list[dict[str, Any]] = [
    {"filters": {"min_confidence": 0.3, "pii": "mask"}, "validation_share": 0.4},
    {"stratify": "label", "validation_share": 0.5, "balance": {"caps": {"slice": 3}, "floors": {"label": 2}}},
    {"balance": {"max_rows": 4, "choice": "diverse", "caps": {"tone": 2}}, "dedup": {"semantic": True}},
]


@st.composite
def candidates(draw: st.DrawFn) -> pl.DataFrame:
    """Rows of few words, so that prompts are equal or near; people and teachers answer the same ones."""
    rows = []
    for _ in range(draw(st.integers(0, 14))):
        words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6))
        changes: dict[str, Any] = {"slice": draw(st.sampled_from("abc")), "teacher": draw(st.sampled_from(["t", None]))}
        changes |= {"answer": draw(st.sampled_from(['"refund"', '"delivery"', '"wrong"']))}
        changes |= {"confidence": draw(st.sampled_from([0.2, 0.5, 0.9]))}
        changes |= {"axes": draw(st.sampled_from([None, '{"tone":"calm"}']))}
        rows.append(row(" ".join(words), **changes))
    frame = pl.DataFrame(rows, schema=SCORED).unique(["prompt_id", "slice", "teacher", "answer"], maintain_order=True)
    task = build_task("classification", curation={"filters": {"pii": "mask"}})
    return (
        add_scores(frame, collect_task_scorers(task), TaskView.from_task(task))
        .select(list(SCORED))
        .sort("slice", maintain_order=True)
    )


def embed(texts: list[str]) -> Any:
    import numpy as np

    vectors = np.array([[len(text), text.count("a"), 1.0] for text in texts], dtype=np.float32).reshape(-1, 3)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=15)
@given(candidates(), st.sampled_from(SPECS), st.integers(1, 5))
def test_every_source_gives_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: pl.DataFrame, settings: dict[str, Any], at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    dedup = {"near": {"ngram": 1, "min_words": 1, "threshold": 0.6}} | settings.get("dedup", {})
    spec = CurationSpec.model_validate(settings | {"dedup": dedup})

    def cut(source: Any, **more: Any) -> CuratedDataset:
        return curate_dataset(source, {"my"}, LABELS, spec, items=items(" ".join(WORDS[:4])), embed=embed, **more)

    whole = cut(rows)
    assert whole.candidates == rows.height == whole.dataset.height + whole.rejected.height
    files = []
    for (name,), part in rows.partition_by("slice", as_dict=True).items():
        files.append(folder / f"{name}.parquet")
        write_parquet(part, files[-1], {})
    write_parquet(rows, folder / "all.parquet", {})
    sources = [rows.lazy(), folder / "all.parquet", *([files] if files else [])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "distill_dagster.curation.dataset.slim_rows.map_in_batches",
            functools.partial(map_in_batches, batch_rows=at_once),
        )
        patch.setattr(
            "distill_dagster.curation.dataset.curate.assign_parts", functools.partial(assign_parts, rows=at_once)
        )
        patch.setattr("distill_dagster.curation.dataset.write_parts.READ_BATCH_ROWS", at_once)
        patch.setattr("distill_dagster.curation.dataset.comparison_cache.INCREMENTAL_MIN_ROWS", 1)
        for number, source in enumerate(sources):
            found = cut(source, folder=folder / str(number), cache=ComparisonCache(folder / "compared"))
            assert found.dataset.equals(whole.dataset)
            assert found.rejected.equals(whole.rejected)
            assert found.leaks.equals(whole.leaks)
            assert (found.count_reasons(), found.masked) == (whole.count_reasons(), whole.masked)
            assert compute_data_version(found.kept) == compute_data_version(whole.dataset)
            assert compute_data_version(found.left_out) == compute_data_version(whole.rejected)


def test_parts_are_ordered_in_any_order_of_rows() -> None:
    ids = pl.Series("prompt_id", [f"p{n:02}" for n in (4, 0, 9, 1, 5, 5, 5, 2, 3, 8, 7, 6)])
    found = pl.DataFrame([ids, assign_parts(ids, 4)]).sort("prompt_id")
    assert found["part"].to_list() == [0] * 4 + [1] * 4 + [2] * 4
    again = ids.sort()
    assert pl.DataFrame([again, assign_parts(again, 4)]).equals(found)
