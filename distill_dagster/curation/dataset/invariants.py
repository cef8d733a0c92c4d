"""Checks of the dataset: no row is lost or leaks, and there are enough rows, labels and slices."""

from __future__ import annotations

from typing import Any

import polars as pl

from distill_dagster.config.balance import BalanceSpec
from distill_dagster.config.dedup import DecontaminationSpec
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.curation.dataset.balance import count_below_floors
from distill_dagster.curation.text_columns import build_text_keys, extract_user_texts
from distill_dagster.tables.validation import Table

MAX_NAMED_ROWS = 20
"""The number of leaked rows that a check names."""


def check_dataset(
    candidates: int, dataset: Table, rejected: Table, labels: list[str], min_rows: int
) -> list[CheckResult]:
    """Whether no candidate is lost, and the training rows are enough.

    Args:
        candidates: the number of candidates that the dataset was cut from.
        dataset, rejected: schemas DATASET and REJECTED.
        labels: the task's labels; empty for a kind without labels.
        min_rows: the least number of training rows.
    """
    dataset, reasons = dataset.lazy(), rejected.lazy().select("drop_reason").collect(engine="streaming")["drop_reason"]
    splits = dataset.select("split").collect(engine="streaming")["split"]
    train_rows = int((splits == "train").sum())
    rows = {"candidates": candidates, "kept": len(splits), "rejected": len(reasons)}
    present = set[str]()
    if labels:
        train = dataset.filter(pl.col("split") == "train").select(pl.col("answer").unique())
        present = set(train.collect(engine="streaming")["answer"].str.json_decode(pl.String))
    absent = [label for label in labels if label not in present]
    return [
        CheckResult(
            "nothing_lost", len(splits) + len(reasons) == candidates and not reasons.null_count(), details=rows
        ),
        CheckResult(
            "enough_rows",
            train_rows >= min_rows and (not labels or len(present) >= 2),
            details={"train_rows": train_rows, "min_rows": min_rows, "labels": len(present)},
        ),
        CheckResult("label_coverage", not absent, "warning", {"labels_without_rows": ", ".join(absent)}),
    ]


def check_contamination(
    dataset: Table,
    held_out: set[str],
    items: pl.DataFrame | None = None,
    spec: DecontaminationSpec | None = None,
    keep_numbers: bool = False,
    limits: ResourceLimits | None = None,
) -> CheckResult:
    """Whether no row of the dataset has the text of a golden or dev row, nor nearly has it.

    Args:
        held_out: the text keys of golden and dev rows (`text_columns.build_text_keys`).
        items: `id` and `text` of golden and dev rows. Without them, or without a spec, only equal texts are found.
        spec: the task's settings of decontamination; None where the task turned it off.
        keep_numbers: whether texts whose numbers differ are never nearly the same.
    """
    read = dataset.lazy().select("prompt_id", "messages")
    keys = pl.Series(sorted(held_out), dtype=pl.String)

    def extract_texts(rows: pl.DataFrame) -> pl.DataFrame:
        texts = extract_user_texts(rows["messages"]).alias("text")
        is_equal = build_text_keys(texts).is_in(keys.implode())
        return pl.DataFrame([rows["prompt_id"], texts, is_equal.alias("is_equal")])

    schema = {"prompt_id": pl.String, "text": pl.String, "is_equal": pl.Boolean}
    texts = read.map_batches(extract_texts, schema=schema, streamable=True)
    equal = texts.filter("is_equal").select("prompt_id").collect(engine="streaming")["prompt_id"]
    leaked = dict.fromkeys(equal.sort(), "equal text")
    if items is not None and items.height and spec is not None:
        leaked = _find_near_items(texts, items, spec, keep_numbers, limits) | leaked
    named = [f"{prompt_id} ({why})" for prompt_id, why in sorted(leaked.items())[:MAX_NAMED_ROWS]]
    return CheckResult("no_contamination", not leaked, details={"prompt_ids": ", ".join(named)})


def _find_near_items(
    texts: pl.LazyFrame,
    items: pl.DataFrame,
    spec: DecontaminationSpec,
    keep_numbers: bool,
    limits: ResourceLimits | None,
) -> dict[str, str]:
    """By prompt id, the golden or dev row that a row of the dataset equals or nearly equals."""
    # They load NumPy.
    from distill_dagster.curation.dedup.decontaminate import find_contamination
    from distill_dagster.curation.dedup.folding import MinHashScheme

    scheme = MinHashScheme(keep_numbers=keep_numbers)
    hits = find_contamination(texts, items, id="prompt_id", scheme=scheme, limits=limits, **spec.model_dump()).hits
    near = hits.filter(pl.col("kind").is_in(["exact", "near"]))
    return {prompt_id: f"like {item_id}" for prompt_id, item_id in near.select("id", "golden_id").iter_rows()}


def check_floors(dataset: Table, spec: BalanceSpec) -> CheckResult:
    """Whether every value of a field has the rows that the task's floors ask for."""
    few = count_below_floors(dataset, spec)
    return CheckResult("floors_met", not few, "warning", {name: count_noun(rows, "row") for name, rows in few.items()})


def check_slices(slices: list[dict[str, Any]], min_slices: int) -> list[CheckResult]:
    """Whether enough slices give rows, and whether all give current rows.

    Args:
        slices: a line for each slice with `slice`, `gives` and `why`.
    """
    silent = [line["slice"] for line in slices if line["gives"] == "nothing"]
    not_current = [f"{line['slice']}: {line['why']}" for line in slices if line["gives"] != "its rows"]
    giving = len(slices) - len(silent)
    details = {"slices_with_rows": giving, "min_slices": min_slices, "slices_without_rows": ", ".join(silent)}
    return [
        CheckResult("enough_slices", giving >= min_slices, details=details),
        CheckResult("slices_current", not not_current, "warning", {"slices": "\n".join(not_current[:50])}),
    ]
