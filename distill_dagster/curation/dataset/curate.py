"""Filters, duplicates, decontamination and split: from the candidates of all slices to a dataset.

A first pass over the candidates, in batches, applies the filters and leaves a narrow row of each (`narrow`). Steps
decide over these. A last pass makes the dataset and the rejected rows, part by part (`built`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from distill_dagster.config import CurationSpec
from distill_dagster.config.dedup import NearDuplicateSpec
from distill_dagster.curation.dataset.comparison_cache import ComparisonCache
from distill_dagster.curation.dataset.mask import mask_rows
from distill_dagster.curation.dataset.slim_rows import CandidateSource, CandidateTexts, build_slim_rows, scan_candidates
from distill_dagster.curation.dataset.split import assign_splits, assign_stratified_splits
from distill_dagster.curation.dataset.steps import (
    LEAK_SCHEMA,
    NO_CACHE,
    drop_contaminated,
    drop_duplicates,
    drop_leaks,
    drop_near_duplicates,
    drop_over_caps,
    drop_semantic_duplicates,
    merge_near_duplicates,
)
from distill_dagster.curation.dataset.write_parts import TableParts, assign_parts, write_tables
from distill_dagster.curation.filters import STEP_REASONS, Filter, FilterSettings, select_filters
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import append_answers, build_targets, extract_user_texts, list_target_columns
from distill_dagster.tables.schemas import DATASET, REJECTED

if TYPE_CHECKING:
    from distill_dagster.core.embedding import EmbedFunction
    from distill_dagster.core.limits import ResourceLimits


@dataclass(frozen=True)
class CuratedDataset:
    """The dataset and what was left out of it: candidates in = rows kept + rows rejected.

    kept, left_out: schemas DATASET and REJECTED, sorted. `dataset` and `rejected` are the same in memory.
    counts: rows by drop reason; those that are kept have None.
    order: every drop reason that there could be, in the order of application.
    masked: kept rows whose texts were changed.
    leaks: each hit of decontamination (`steps.LEAKS` and `overlap`).
    """

    kept: pl.LazyFrame
    left_out: pl.LazyFrame
    counts: Mapping[str | None, int]
    order: tuple[str, ...] = field(default=tuple(STEP_REASONS))
    masked: int = 0
    leaks: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LEAK_SCHEMA))

    @cached_property
    def dataset(self) -> pl.DataFrame:
        return self.kept.collect(engine="streaming")

    @cached_property
    def rejected(self) -> pl.DataFrame:
        return self.left_out.collect(engine="streaming")

    @property
    def candidates(self) -> int:
        return sum(self.counts.values())

    @property
    def kept_rows(self) -> int:
        return self.counts.get(None, 0)

    def reasons(self) -> dict[str, int]:
        return {reason: self.counts.get(reason, 0) for reason in self.order}


def list_drop_reasons(filters: Sequence[Filter]) -> tuple[str, ...]:
    """The reasons of these filters and of the steps behind them, in the order of application."""
    return (*(one.reason for one in filters), *STEP_REASONS)


def curate_dataset(
    candidates: CandidateSource,
    held_out: set[str],
    labels: list[str],
    spec: CurationSpec,
    about: TaskView | None = None,
    items: pl.DataFrame | None = None,
    embed: EmbedFunction | None = None,
    limits: ResourceLimits | None = None,
    compared: ComparisonCache = NO_CACHE,
    folder: Path | None = None,
) -> CuratedDataset:
    """Cut a dataset from scored candidates. No score is computed here: a changed threshold costs seconds.

    Args:
        candidates: scored rows of all slices (schema SCORED).
        held_out: normalized texts of golden and dev rows; equal candidates are dropped as `contaminated`.
        labels: the task's labels; none for a kind without.
        spec: filters, duplicates, balance, weight of human answers, validation share and seed.
        about: the task, for the filters and the words of the target turn; by default its answers are labels.
        items: `id` and `text` of golden and dev rows; without them only equal texts are `contaminated`.
        embed: sentence embeddings, for `dedup.semantic` and the choice `diverse` of `balance` alone.
        limits: memory, threads and spill folder of what compares rows with each other.
        compared: keeps what comparing found, so that another threshold of a filter compares nothing anew.
        folder: an empty folder for the dataset and the rejected rows, which `kept` and `left_out` read; without one
            both are in memory.
    """
    about = about or TaskView(labels=tuple(labels))
    filters = select_filters(FilterSettings.model_validate(spec.filters), about)
    source = scan_candidates(candidates)
    rows, leaks = _decide_rows(source, filters, held_out, spec, about, items, embed, limits, compared)

    def finished(kept: pl.DataFrame) -> pl.DataFrame:
        kept = mask_rows(kept, filters, about)
        human = pl.when(pl.col("teacher").is_null())
        return kept.with_columns(
            human.then(spec.human_weight).otherwise(1.0).alias("weight"),
            append_answers(kept["messages"], build_targets(kept, about.matcher)),
        )

    by_id = ("prompt_id", "slice")
    by_why = (*by_id, "answer", "drop_reason")
    stays = pl.col("drop_reason").is_null()
    tables = [
        TableParts("kept", stays, DATASET, by_id, finished),
        TableParts("left_out", ~stays, REJECTED, by_why, lambda rows: rows),
    ]
    kept, left_out = write_tables(source, rows, tables, folder)
    counts = dict(rows.group_by("drop_reason").len().iter_rows())
    masked = rows.select((pl.col("masks") & stays).sum()).item()
    return CuratedDataset(kept, left_out, counts, list_drop_reasons(filters), masked, leaks)


def _decide_rows(
    source: pl.LazyFrame,
    filters: Sequence[Filter],
    held_out: set[str],
    spec: CurationSpec,
    about: TaskView,
    items: pl.DataFrame | None,
    embed: EmbedFunction | None,
    limits: ResourceLimits | None,
    compared: ComparisonCache,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What becomes of each row, in the order of the source, and every leak.

    The first has `drop_reason`, `drop_detail`, `cluster_id`, `masks`, and `split` and `part` of where a row goes.
    """
    near, numbers = spec.dedup.near, about.kind == "math"
    compare = (near.compare if near else None) or ("prompt" if about.labels else "prompt_and_answer")
    said = () if compare == "prompt" else list_target_columns(about.matcher)

    def near_text(rows: pl.DataFrame) -> pl.Series:
        """What near-duplicates are looked for in: the prompt alone, where many have one answer, else both."""
        prompt = extract_user_texts(rows["messages"]).alias("text")
        if not said:
            return prompt
        both = pl.DataFrame([prompt, build_targets(rows, about.matcher).alias("said")])
        return both.select(pl.concat_str("text", "said", separator="\n", ignore_nulls=True)).to_series()

    rows = build_slim_rows(source, filters, about, said, _extra_columns(spec, about))
    named = rows.select("ident", "prompt_id", "slice", content="text")
    prompts = CandidateTexts(named, source, lambda batch: extract_user_texts(batch["messages"]), ("messages",))
    # Steps look at several rows and run in their order, each over what is still kept.
    rows, leaks = drop_contaminated(rows, held_out), pl.DataFrame(schema=LEAK_SCHEMA)
    if items is not None and items.height and spec.decontamination is not None:
        rows, leaks = drop_leaks(rows, prompts, items, spec.decontamination, numbers, limits, compared)
    rows = drop_duplicates(rows)
    named = rows.select("ident", "prompt_id", "slice", content="said")
    texts = CandidateTexts(named, source, near_text, ("messages", *said))
    if near is not None:
        keep_numbers = numbers if near.keep_numbers is None else near.keep_numbers
        rows = drop_near_duplicates(rows, texts, near, keep_numbers, limits, compared)
    if spec.dedup.semantic is not None:
        assert embed is not None, "dedup.semantic needs sentence embeddings"
        rows = drop_semantic_duplicates(rows, prompts, embed, spec.dedup.semantic, limits, compared)
    if spec.balance.cuts:
        rows = drop_over_caps(rows, prompts, spec.balance, spec.seed, embed)
    if near is None and spec.validation_share:
        rows = merge_near_duplicates(rows, texts, NearDuplicateSpec(), numbers, limits, compared)
    rows = rows.with_columns(_assign_splits(rows, spec), assign_parts(rows["prompt_id"]))
    return rows.select("drop_reason", "drop_detail", "cluster_id", "masks", "split", "part"), leaks


def _extra_columns(spec: CurationSpec, about: TaskView) -> tuple[str, ...]:
    """The columns that the steps need for this task besides what they always need."""
    fields = {*spec.balance.caps, *spec.balance.floors} if spec.balance.cuts else set()
    answers = about.labels or "label" in fields or spec.stratify == "label"
    return (*(["answer"] if answers else []), *(["axes"] if fields - {"slice", "label"} else []))


def _assign_splits(rows: pl.DataFrame, spec: CurationSpec) -> pl.Series:
    """`split` of the kept rows; null for the others."""
    stays = rows["drop_reason"].is_null()
    kept = rows.filter(stays)
    keys, teachers, share = kept["text_key"], kept["teacher"], spec.validation_share
    if spec.stratify is None or not share:
        found = assign_splits(keys, teachers, share, spec.seed)
    else:
        strata = kept["slice" if spec.stratify == "slice" else "answer"]
        found = assign_stratified_splits(strata, keys, teachers, share, spec.seed)
    none = pl.Series("split", [None], dtype=pl.String).new_from_index(0, rows.height)
    return none.scatter(stays.arg_true(), found)
