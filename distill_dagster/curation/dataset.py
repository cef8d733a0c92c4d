"""Filters, duplicates, decontamination and split: from the candidates of all slices to a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import polars as pl

from distill_dagster.curation.about import About
from distill_dagster.curation.filters import STEPS, Filter, in_order, marked
from distill_dagster.curation.masked import masked_rows
from distill_dagster.curation.split import sides
from distill_dagster.curation.steps import contaminated, duplicates
from distill_dagster.curation.texts import targets, text_keys, user_texts, with_answers
from distill_dagster.spec import CurationSpec
from distill_dagster.tables import DATASET, REJECTED, SCORED, conform


@dataclass(frozen=True)
class Curated:
    """The dataset and what was left out of it: candidates in = rows kept + rows rejected.

    `order` has every drop reason that there could be, in the order of application; `masked` counts kept rows whose
    texts were changed.
    """

    dataset: pl.DataFrame
    rejected: pl.DataFrame
    order: tuple[str, ...] = field(default=tuple(STEPS))
    masked: int = 0

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
) -> Curated:
    """Cut a dataset from scored candidates. No score is computed here: a changed threshold costs seconds.

    Args:
        candidates: scored rows of all slices (schema SCORED).
        held_out: normalized texts of golden and dev rows; equal candidates are dropped as `contaminated`.
        labels: the task's labels; none for a kind without.
        spec: filters, weight of human answers, validation share and seed.
        about: the task, for the filters and the words of the target turn; by default its answers are labels.
    """
    about = about or About(labels=tuple(labels))
    filters = in_order(spec.filters, about)
    # What takes Python or one core runs beside what does not.
    with ThreadPoolExecutor(1) as beside:
        keys = beside.submit(lambda: text_keys(user_texts(candidates["messages"])))
        rows = marked(candidates.select(list(SCORED)), filters, about)
        rows = rows.with_columns(keys.result())
        # Steps look at several rows and run in their order, each over what is still kept; one may take another's place.
        rows = contaminated(rows, held_out)
        rows = duplicates(rows)
        rejected = rows.filter(pl.col("drop_reason").is_not_null()).drop("text_key")
        here = [name for name in rows.columns if name in DATASET or name in ("text_key", "scores")]
        kept = rows.select(here).filter(rows["drop_reason"].is_null())
        del rows  # of a million rows there is one table less at a time
        split = beside.submit(sides, kept["text_key"], kept["teacher"], spec.validation_share, spec.seed)
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
    )
