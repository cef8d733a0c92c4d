"""Filters, duplicates, decontamination and split: from the candidates of all slices to a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from distill_dagster.curation.about import About
from distill_dagster.curation.balance import balance
from distill_dagster.curation.compared import Compared, idents
from distill_dagster.curation.filters import STEPS, Filter, in_order, marked
from distill_dagster.curation.masked import masked_rows
from distill_dagster.curation.split import sides, stratified_sides
from distill_dagster.curation.steps import (
    LEAKS,
    NOTHING,
    contaminated,
    duplicates,
    leaking,
    near_duplicates,
    semantic_duplicates_of,
)
from distill_dagster.curation.texts import targets, text_keys, user_texts, with_answers
from distill_dagster.spec import CurationSpec
from distill_dagster.tables import DATASET, REJECTED, SCORED, conform

if TYPE_CHECKING:
    from distill_dagster.curation.neardup.rows import Limits
    from distill_dagster.embedding import Embed


@dataclass(frozen=True)
class Curated:
    """The dataset and what was left out of it: candidates in = rows kept + rows rejected.

    `order` has every drop reason that there could be, in the order of application; `masked` counts kept rows whose
    texts were changed; `leaks` names each hit of decontamination (`steps.LEAKS` and `overlap`).
    """

    dataset: pl.DataFrame
    rejected: pl.DataFrame
    order: tuple[str, ...] = field(default=tuple(STEPS))
    masked: int = 0
    leaks: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=LEAKS))

    def reasons(self) -> dict[str, int]:
        counts = dict(self.rejected.group_by("drop_reason").len().iter_rows())
        return {reason: counts.get(reason, 0) for reason in self.order}


def drop_reasons(filters: Sequence[Filter]) -> tuple[str, ...]:
    """The reasons of these filters and of the steps behind them, in the order of application."""
    return (*(one.drop_reason for one in filters), *STEPS)


def curate(
    candidates: pl.DataFrame,
    held_out: set[str],
    labels: list[str],
    spec: CurationSpec,
    about: About | None = None,
    items: pl.DataFrame | None = None,
    embed: Embed | None = None,
    limits: Limits | None = None,
    compared: Compared = NOTHING,
) -> Curated:
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
    """
    about = about or About(labels=tuple(labels))
    filters = in_order(spec.filters, about)
    near, numbers = spec.dedup.near, about.kind == "math"
    # What takes Python or one core runs beside what does not.
    with ThreadPoolExecutor(1) as beside:
        texts = user_texts(candidates["messages"]).alias("text")
        keys = beside.submit(text_keys, texts)
        rows = marked(candidates.select(list(SCORED)), filters, about)
        rows = rows.with_columns(texts, keys.result(), pl.lit(None, dtype=pl.String).alias("cluster_id"))
        rows = rows.with_columns(idents(rows))
        # Steps look at several rows and run in their order, each over what is still kept.
        rows, leaks = contaminated(rows, held_out), pl.DataFrame(schema=LEAKS)
        if items is not None and items.height and spec.decontamination is not None:
            rows, leaks = leaking(rows, items, spec.decontamination, numbers, limits, compared)
        rows = duplicates(rows)
        if near is not None:
            keep_numbers = numbers if near.keep_numbers is None else near.keep_numbers
            rows = near_duplicates(rows, _compared(rows, near.compare, about), near, keep_numbers, limits, compared)
        if spec.dedup.semantic is not None:
            assert embed is not None, "dedup.semantic needs sentence embeddings"
            rows = semantic_duplicates_of(rows, embed, spec.dedup.semantic, limits, compared)
        if spec.balance.cuts:
            chosen = balance(rows.filter(rows["drop_reason"].is_null()), spec.balance, spec.seed, embed)
            rows = pl.concat([rows.filter(rows["drop_reason"].is_not_null()), chosen])
        rejected = rows.filter(pl.col("drop_reason").is_not_null()).drop("text", "text_key", "ident")
        here = [name for name in rows.columns if name in DATASET or name in ("text_key", "scores")]
        kept = rows.select(here).filter(rows["drop_reason"].is_null())
        del rows  # of a million rows there is one table less at a time
        split = beside.submit(_split, kept, spec)
        kept, masked = masked_rows(kept, filters, about)
        messages = with_answers(kept["messages"], targets(kept, about.matcher))
        dataset = kept.with_columns(
            pl.when(pl.col("teacher").is_null()).then(spec.human_weight).otherwise(1.0).alias("weight"),
            split.result().alias("split"),
            messages,
        )
    return Curated(
        conform(dataset.select(list(DATASET)), DATASET, ("prompt_id", "slice")),
        conform(rejected, REJECTED, ("prompt_id", "slice", "answer", "drop_reason")),
        drop_reasons(filters),
        masked,
        leaks,
    )


def _compared(rows: pl.DataFrame, compare: str | None, about: About) -> pl.Series:
    """What near-duplicates are looked for in: the prompt alone, where many have one answer, else both."""
    if (compare or ("prompt" if about.labels else "prompt_and_answer")) == "prompt":
        return rows["text"]
    both = rows.select("text").with_columns(targets(rows, about.matcher).alias("said"))
    return both.select(pl.concat_str("text", "said", separator="\n", ignore_nulls=True)).to_series()


def _split(kept: pl.DataFrame, spec: CurationSpec) -> pl.Series:
    if spec.stratify is None or not spec.validation_share:
        return sides(kept["text_key"], kept["teacher"], spec.validation_share, spec.seed)
    strata = kept["slice" if spec.stratify == "slice" else "answer"]
    return stratified_sides(strata, kept["text_key"], kept["teacher"], spec.validation_share, spec.seed)
