"""Detect a shift of the dataset against the last good one, in drop rates, labels and lengths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import polars as pl

from distill_dagster.config.shift import ShiftSpec
from distill_dagster.core.checks import CheckResult
from distill_dagster.curation.text_columns import extract_user_texts
from distill_dagster.tables.validation import Expectation, validate_table

LENGTH_BINS = (0, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096, 1_000_000)
"""The bins of words in which lengths are compared. The last bound is above any length."""
TAIL_WEIGHT = 0.01
"""The weight of values that did not occur before. Without it, one new label is an infinite divergence."""
CHANCE_QUANTILE = 0.999
"""Samples of one source exceed an allowed divergence with a probability of at most one minus this."""
MIN_SHIFT_ROWS = 30
"""With fewer rows, before or now, nothing is compared."""


def build_profile(candidates: int, measured: pl.DataFrame, reasons: Mapping[str, int]) -> dict[str, Any]:
    """Counts of a dataset, which the next one is compared with. They are small enough for a record.

    Args:
        measured: the dataset as `measure_rows` returns it.
    """
    import numpy as np

    found: dict[str, Any] = {"candidates": candidates, "rows": measured.height}
    found["reasons"] = {reason: count for reason, count in reasons.items() if count}
    if "label" in measured.columns:
        found["labels"] = dict(measured.group_by("label").len().sort("label").iter_rows())
    for name in ("prompt_words", "answer_words"):
        found[name] = np.histogram(measured[name].drop_nulls(), bins=LENGTH_BINS)[0].tolist()
    return found


def measure_rows(dataset: pl.DataFrame | pl.LazyFrame, labels: bool) -> pl.DataFrame:
    """For each row of a dataset the words of prompt and answer and, where answers are labels, the `label`."""

    def measure(rows: pl.DataFrame) -> pl.DataFrame:
        answers = rows["messages"].list.last().struct.field("content")
        counted = pl.DataFrame(
            {"prompt_words": _count_words(extract_user_texts(rows["messages"])), "answer_words": _count_words(answers)}
        )
        return counted.with_columns(rows["answer"].alias("label")) if labels else counted

    schema = {"prompt_words": pl.UInt32, "answer_words": pl.UInt32} | ({"label": pl.String} if labels else {})
    read = dataset.lazy().select("messages", *(["answer"] if labels else []))
    return read.map_batches(measure, schema=schema, streamable=True).collect(engine="streaming")


def _count_words(texts: pl.Series) -> pl.Series:
    return texts.str.count_matches(r"\S+").fill_null(0)


def check_shift(
    measured: pl.DataFrame, now: dict[str, Any], before: dict[str, Any] | None, spec: ShiftSpec
) -> list[CheckResult]:
    """The checks `drop_rates` and `same_distribution`. Both pass if there is nothing to compare with.

    Great Expectations computes the divergences over the table. The limit is the higher one of the spec's and of what
    chance does to two samples of one source. For chance, 2 n times the divergence is chi-squared, with one degree of
    freedom less than there are values (the G-test, Wilks 1938).

    Raises:
        DistillError: an expectation could not be evaluated.
    """
    if before is None:
        found = {"compared_with": "nothing: the first good dataset"}
        return [CheckResult(name, True, spec.severity, found) for name in ("drop_rates", "same_distribution")]
    return [_check_drop_rates(now, before, spec), _check_distribution(measured, now, before, spec)]


def _check_drop_rates(now: dict[str, Any], before: dict[str, Any], spec: ShiftSpec) -> CheckResult:
    found: dict[str, Any] = {}
    if min(now["candidates"], before["candidates"]) >= MIN_SHIFT_ROWS:
        for reason in sorted({*now["reasons"], *before["reasons"]}):
            was, now_is = (p["reasons"].get(reason, 0) / p["candidates"] for p in (before, now))
            if abs(now_is - was) > spec.max_drop_change:
                found[reason] = f"{was:.1%} of the candidates before, {now_is:.1%} now"
    return CheckResult("drop_rates", not found, spec.severity, found)


def _check_distribution(
    measured: pl.DataFrame, now: dict[str, Any], before: dict[str, Any], spec: ShiftSpec
) -> CheckResult:
    if min(now["rows"], before["rows"]) < MIN_SHIFT_ROWS:
        return CheckResult(
            "same_distribution", True, spec.severity, {"compared_with": f"fewer than {MIN_SHIFT_ROWS} rows"}
        )
    expectations: list[Expectation] = []
    if "labels" in now and "labels" in before:
        counts = before["labels"]
        partition = {"values": list(counts), "weights": _normalize_counts(list(counts.values()))}
        allowed = _compute_allowed(len({*counts, *now["labels"]}), now["rows"], before["rows"], spec)
        expectations.append(_expect_divergence("label", partition, allowed))
    for name in ("prompt_words", "answer_words"):
        used = [n for n, pair in enumerate(zip(now[name], before[name], strict=True)) if any(pair)]
        first, last = used[0], used[-1]
        partition = {
            "bins": list(LENGTH_BINS[first : last + 2]),
            "weights": _normalize_counts(before[name][first : last + 1]),
        }
        allowed = _compute_allowed(len(used), now["rows"], before["rows"], spec)
        expectations.append(_expect_divergence(name, partition, allowed))
    failed = validate_table("shift", measured.to_pandas(), expectations)
    found = {what.split()[-1]: f"{why} nats" for what, why in failed.items() if why is not None}
    return CheckResult("same_distribution", not found, spec.severity, found)


def _expect_divergence(column: str, partition: dict[str, Any], allowed: float) -> Expectation:
    arguments: dict[str, Any] = {"column": column, "partition_object": partition, "threshold": allowed}
    arguments["tail_weight_holdout"] = TAIL_WEIGHT
    if "bins" in partition:
        arguments["internal_weight_holdout"] = TAIL_WEIGHT
    return ("ExpectColumnKLDivergenceToBeLessThan", arguments)


def _normalize_counts(counts: list[int]) -> list[float]:
    return [count / sum(counts) for count in counts]


def _compute_allowed(values: int, now: int, before: int, spec: ShiftSpec) -> float:
    from scipy.stats import chi2

    chance = chi2.ppf(CHANCE_QUANTILE, max(values - 1, 1)) * (1 / now + 1 / before) / 2
    return max(spec.max_divergence, float(chance))


def read_last_good_profile(extra: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The profile of the last good dataset, from the extra fields of the latest record.

    It is the record's own, or the one that it was compared with if it did not pass its checks.
    """
    if extra is None:
        return None
    found = extra.get("compared_with") if extra.get("blocked") else extra.get("profile")
    return json.loads(json.dumps(found)) if found else None
