"""Cut a dataset from the candidates of all slices: filters, duplicates, decontamination, balance and split.

A first pass reads the candidates in batches, applies the filters, and keeps a slim row of each on disk (`slim_rows`).
Their texts are compared (`matches`). Steps decide over the slim rows (`steps`). A last pass writes the dataset and the
rejected rows part by part (`write_parts`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import polars as pl

from distill_dagster.config import CurationSpec
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.core.workers import IN_PROCESS, Workers
from distill_dagster.curation.dataset.balance import LOW_CONFIDENCE, restore_to_floors
from distill_dagster.curation.dataset.comparison_cache import ComparisonCache
from distill_dagster.curation.dataset.mask import mask_rows
from distill_dagster.curation.dataset.matches import NO_CACHE, Comparison
from distill_dagster.curation.dataset.slim_rows import (
    CandidateSource,
    CandidateTexts,
    build_slim_rows,
    scan_candidates,
)
from distill_dagster.curation.dataset.split import (
    DRAW_DIGITS,
    assign_splits,
    assign_stratified_splits,
    hash_text_keys,
)
from distill_dagster.curation.dataset.steps import (
    LEAK_SCHEMA,
    drop_contaminated,
    drop_duplicates,
    drop_leaks,
    drop_near_duplicates,
    drop_over_caps,
    drop_semantic_duplicates,
    merge_near_duplicates,
    scan_kept_rows,
)
from distill_dagster.curation.dataset.write_parts import TableParts, assign_parts, write_tables
from distill_dagster.curation.filters import STEP_REASONS, Filter, FilterSettings, select_filters
from distill_dagster.curation.soft_labels.temperature import rescale_soft_labels_expr
from distill_dagster.curation.task_view import TaskView
from distill_dagster.curation.text_columns import append_answers, build_targets, extract_user_texts, list_target_columns
from distill_dagster.tables.schemas import DATASET, REJECTED

if TYPE_CHECKING:
    from distill_dagster.core.embedding import EmbedFunction

NO_TEMPERATURES: Mapping[str, float] = MappingProxyType({})
"""Leaves all soft labels as they are."""


@dataclass(frozen=True)
class CuratedDataset:
    """A dataset and its rejected rows. Together they are all candidates.

    Attributes:
        kept, left_out: schemas DATASET and REJECTED, sorted; `dataset` and `rejected` are the same in memory.
        counts: rows by drop reason; the key of kept rows is None.
        order: every possible drop reason, in the order of application.
        masked: the number of kept rows with masked texts.
        leaks: each hit of decontamination, as `steps.LEAK_SCHEMA` with `overlap`.
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

    def count_reasons(self) -> dict[str, int]:
        """Rejected rows by drop reason, in the order of application; 0 for a reason without rows."""
        return {reason: self.counts.get(reason, 0) for reason in self.order}


def list_drop_reasons(filters: Sequence[Filter]) -> tuple[str, ...]:
    """The reasons of these filters and of the steps after them, in the order of application."""
    return (*(each.reason for each in filters), *STEP_REASONS)


def curate_dataset(
    candidates: CandidateSource,
    held_out: set[str],
    labels: list[str],
    spec: CurationSpec,
    task: TaskView | None = None,
    items: pl.DataFrame | None = None,
    embed: EmbedFunction | None = None,
    limits: ResourceLimits | None = None,
    cache: ComparisonCache = NO_CACHE,
    folder: Path | None = None,
    temperatures: Mapping[str, float] = NO_TEMPERATURES,
    workers: Workers = IN_PROCESS,
) -> CuratedDataset:
    """Cut a dataset from scored candidates. It computes no score, so a changed threshold takes seconds.

    Args:
        candidates: scored rows of all slices (schema SCORED).
        held_out: normalized texts of golden and dev rows. Equal candidates are dropped as `contaminated`.
        labels: the task's labels; empty for a kind without labels.
        spec: `curation` of task.yaml.
        task: the task, for the filters and the target turn; by default answers are labels.
        items: `id` and `text` of golden and dev rows; without them only equal texts are `contaminated`.
        embed: sentence embeddings, which `dedup.semantic` and the choice `diverse` of `balance` need.
        limits: memory, threads and spill folder for the comparison of rows.
        cache: keeps the results of comparisons, so that another threshold of a filter compares nothing again.
        folder: an empty folder for the files that `kept` and `left_out` read; without one both are in memory.
        temperatures: by teacher, the temperature that rescales the soft labels of its kept rows. Filters and steps
            read confidences as the teacher stated them.
        workers: apply filters and compare texts. The result is the same.

    Raises:
        ValidationError: the block `curation.filters` is malformed.
    """
    task = task or TaskView(labels=tuple(labels))
    filters = select_filters(FilterSettings.model_validate(spec.filters), task)
    if spec.balance.floors:  # last, so that a floor keeps no row that another filter drops
        filters = sorted(filters, key=lambda each: each.reason == LOW_CONFIDENCE)
    source = scan_candidates(candidates)
    rows, leaks = _decide_rows(source, filters, held_out, spec, task, items, embed, limits, cache, workers)

    def complete_kept(kept: pl.DataFrame) -> pl.DataFrame:
        kept = mask_rows(kept, filters, task)
        human = pl.when(pl.col("teacher").is_null())
        return kept.with_columns(
            human.then(spec.human_weight).otherwise(1.0).alias("weight"),
            append_answers(kept["messages"], build_targets(kept, task.matcher)),
            rescale_soft_labels_expr(temperatures),
        )

    by_id = ("prompt_id", "slice")
    by_reason = (*by_id, "answer", "drop_reason")
    is_kept = pl.col("drop_reason").is_null()
    tables = [
        TableParts("kept", is_kept, DATASET, by_id, complete_kept),
        TableParts("left_out", ~is_kept, REJECTED, by_reason, lambda rows: rows),
    ]
    kept, left_out = write_tables(source, rows, tables, folder)
    counts = dict(rows.group_by("drop_reason").len().iter_rows())
    masked = rows.select((pl.col("masks") & is_kept).sum()).item()
    return CuratedDataset(kept, left_out, counts, list_drop_reasons(filters), masked, leaks)


def _decide_rows(
    source: pl.LazyFrame,
    filters: Sequence[Filter],
    held_out: set[str],
    spec: CurationSpec,
    task: TaskView,
    items: pl.DataFrame | None,
    embed: EmbedFunction | None,
    limits: ResourceLimits | None,
    cache: ComparisonCache,
    workers: Workers,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The decision on each row, in the order of the source, and every leak.

    The first frame has `drop_reason`, `drop_detail`, `cluster_id`, `masks`, `split`, and `part`, the part of the output
    (`write_parts.assign_parts`).
    """
    near, numbers = spec.dedup.near, task.kind == "math"
    compare = (near.compare if near else None) or ("prompt" if task.labels else "prompt_and_answer")
    answer_columns = () if compare == "prompt" else list_target_columns(task.matcher)

    def build_compared_text(rows: pl.DataFrame) -> pl.Series:
        """The text in which near-duplicates are searched: the prompt, or prompt and answer."""
        prompt = extract_user_texts(rows["messages"]).alias("text")
        if not answer_columns:
            return prompt
        both = pl.DataFrame([prompt, build_targets(rows, task.matcher).alias("target")])
        return both.select(pl.concat_str("text", "target", separator="\n", ignore_nulls=True)).to_series()

    # A hash of each text, which is as short for long texts, unless near texts are merged in the order of the texts.
    seed = None if near is None else spec.seed
    if seed is not None:
        held_out = set(hash_text_keys(pl.Series(sorted(held_out), dtype=pl.String), seed))
    limits, extra = limits or ResourceLimits(), _extra_columns(spec, task)
    with limits.make_folder() as folder:
        stored = build_slim_rows(source, filters, task, folder, answer_columns, extra, seed, workers)
        identity = ("ident", "prompt_id", "slice")
        prompts = CandidateTexts(
            stored.select(*identity, content="text"), source, lambda batch: extract_user_texts(batch["messages"])
        )
        texts = CandidateTexts(
            stored.select(*identity, content="compared"), source, build_compared_text, ("messages", *answer_columns)
        )
        found = Comparison(numbers, limits, cache, workers).find_matches(prompts, texts, items, embed, spec)
        decided = _read_filtered(stored, spec, held_out)
        rows = stored.drop("drop_reason", "drop_detail")
        # Steps run in this order, each over the rows that are still kept.
        decided, leaks = drop_leaks(drop_contaminated(decided, rows, held_out), rows, found.leaks)
        decided = drop_duplicates(decided, rows)
        if near is not None:
            decided = drop_near_duplicates(decided, rows, found.near)
        decided = drop_semantic_duplicates(decided, rows, found.semantic)
        if spec.balance.has_limits:
            decided = drop_over_caps(decided, rows, prompts, spec.balance, spec.seed, embed)
        merged = merge_near_duplicates(decided, rows, found.near) if near is None and spec.validation_share else None
        splits = _assign_splits(decided, rows, spec, merged)
        parts = assign_parts(rows.select("prompt_id").collect(engine="streaming").to_series())
        masks = rows.select("masks").collect(engine="streaming").to_series()
        return decided.with_columns(masks, splits, parts), leaks


def _read_filtered(stored: pl.LazyFrame, spec: CurationSpec, held_out: set[str]) -> pl.DataFrame:
    """What the filters and floors decide on each row: `drop_reason`, `drop_detail`, and an empty `cluster_id`."""
    reasons = stored.select("drop_reason", "drop_detail")
    if spec.balance.floors:
        restored = restore_to_floors(stored.collect(engine="streaming"), spec.balance, held_out)
        reasons = restored.lazy().select("drop_reason", "drop_detail")
    none = pl.lit(None, dtype=pl.String).alias("cluster_id")
    return reasons.with_columns(none).collect(engine="streaming")


def _extra_columns(spec: CurationSpec, task: TaskView) -> tuple[str, ...]:
    """The columns that the steps need for this task, next to those of every task."""
    fields = {*spec.balance.caps, *spec.balance.floors}
    answers = task.labels or "label" in fields or spec.stratify == "label"
    return (*(["answer"] if answers else []), *(["axes"] if fields - {"slice", "label"} else []))


def _assign_splits(
    decided: pl.DataFrame, rows: pl.LazyFrame, spec: CurationSpec, merged: pl.Series | None
) -> pl.Series:
    """`split` of the kept rows; null for the rejected ones.

    Args:
        merged: the text keys of all rows, if they are not those of `rows`.
    """
    share, stratum = spec.validation_share, "slice" if spec.stratify == "slice" else "answer"
    is_stratified = spec.stratify is not None and share > 0
    key = pl.col("text_key") if is_stratified else pl.col("text_key").str.head(DRAW_DIGITS)
    needed = [pl.col("row", "teacher", *([stratum] if is_stratified else [])), *([key] if merged is None else [])]
    kept = scan_kept_rows(decided, rows).select(needed).collect(engine="streaming")
    hashes = kept["text_key"] if merged is None else hash_text_keys(merged.gather(kept["row"]), spec.seed)
    if is_stratified:
        splits = assign_stratified_splits(kept[stratum], hashes, kept["teacher"], share)
    else:
        splits = assign_splits(hashes, kept["teacher"], share)
    none = pl.Series("split", [None], dtype=pl.String).new_from_index(0, decided.height)
    return none.scatter(kept["row"], splits)
