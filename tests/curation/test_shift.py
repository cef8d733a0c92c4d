"""A dataset against the profile of the last good one."""

from __future__ import annotations

import json
from typing import Any

import polars as pl
import pytest

from distill_dagster.config.shift import ShiftSpec
from distill_dagster.core.checks import CheckResult
from distill_dagster.curation.dataset.shift import build_profile, check_shift, measure_rows, read_last_good_profile
from distill_dagster.tables.schemas import DATASET, build_frame


def dataset(*parts: tuple[int, str, str]) -> pl.DataFrame:
    """(rows, label, text)"""
    rows: list[dict[str, Any]] = []
    for count, label, text in parts:
        for _ in range(count):
            turns = [
                {"role": role, "content": words, "tool_calls": None, "tool_call_id": None, "name": None}
                for role, words in (("user", text), ("assistant", label))
            ]
            ids = {"prompt_id": f"p{len(rows)}", "answer": json.dumps(label), "messages": turns}
            rows.append(dict.fromkeys(DATASET) | ids)
    return build_frame(rows, DATASET, ("prompt_id",))


BEFORE = dataset((60, "refund", "a refund please"), (40, "login", "my login fails again today"))
REASONS = {"duplicate": 5, "low_agreement": 10}


def checks(now: pl.DataFrame, reasons: dict[str, int] | None = None, **spec: Any) -> dict[str, CheckResult]:
    before = json.loads(json.dumps(build_profile(115, measure_rows(BEFORE, True), REASONS)))  # as a record keeps it
    candidates = now.height + sum((REASONS if reasons is None else reasons).values())
    of_now = build_profile(candidates, measure_rows(now, True), REASONS if reasons is None else reasons)
    return {check.name: check for check in check_shift(measure_rows(now, True), of_now, before, ShiftSpec(**spec))}


def test_the_same_dataset_and_chance_pass() -> None:
    assert all(check.passed for check in checks(BEFORE).values())
    a_little = dataset((50, "refund", "a refund please"), (42, "login", "my login fails again today"))
    assert all(check.passed for check in checks(a_little, max_divergence=0).values()), "chance may do that"


def test_labels_that_moved_are_named() -> None:
    moved = dataset((10, "refund", "a refund please"), (90, "login", "my login fails again today"))
    found = checks(moved)["same_distribution"]
    assert (found.passed, found.severity) == (False, "warning")
    assert "label" in found.details
    assert "nats" in found.details["label"]
    assert checks(moved, severity="error")["same_distribution"].severity == "error"
    assert checks(moved, max_divergence=5)["same_distribution"].passed


def test_a_new_label_and_longer_texts_are_seen() -> None:
    new = dataset(
        (55, "refund", "a refund please"), (15, "login", "my login fails again today"), (30, "crash", "it crashes")
    )
    assert "label" in checks(new)["same_distribution"].details
    longer = dataset((60, "refund", "a refund please " * 30), (40, "login", "my login fails again today"))
    assert set(checks(longer)["same_distribution"].details) == {"prompt_words"}


def test_a_reason_that_takes_more_or_less_than_before_is_named() -> None:
    found = checks(BEFORE, {"duplicate": 5, "low_agreement": 60})["drop_rates"]
    assert not found.passed
    assert found.details == {"low_agreement": "8.7% of the candidates before, 36.4% now"}
    assert checks(BEFORE, {"duplicate": 5, "low_agreement": 60}, max_drop_change=0.3)["drop_rates"].passed
    gone = checks(BEFORE, {"duplicate": 5}, max_drop_change=0.05)["drop_rates"]
    assert gone.details == {"low_agreement": "8.7% of the candidates before, 0.0% now"}


def test_without_a_profile_or_with_few_rows_the_checks_pass() -> None:
    of_now = build_profile(115, measure_rows(BEFORE, True), REASONS)
    first = check_shift(measure_rows(BEFORE, True), of_now, None, ShiftSpec())
    assert [check.passed for check in first] == [True, True]
    few = dataset((3, "login", "x"))
    assert checks(few, {})["same_distribution"].passed


def test_answers_without_labels_have_lengths_only() -> None:
    found = build_profile(115, measure_rows(BEFORE, False), {})
    assert set(found) == {"candidates", "rows", "reasons", "prompt_words", "answer_words"}
    assert sum(found["prompt_words"]) == sum(found["answer_words"]) == 100


@pytest.mark.parametrize(
    ("extra", "wanted"),
    [
        (None, None),
        ({}, None),
        ({"profile": {"rows": 1}}, {"rows": 1}),
        ({"profile": {"rows": 1}, "compared_with": {"rows": 2}}, {"rows": 1}),
        ({"profile": {"rows": 1}, "compared_with": {"rows": 2}, "blocked": ["x"]}, {"rows": 2}),
        ({"profile": {"rows": 1}, "compared_with": None, "blocked": ["x"]}, None),
    ],
)
def test_the_last_good_profile_is_compared(extra: dict[str, Any] | None, wanted: dict[str, Any] | None) -> None:
    assert read_last_good_profile(extra) == wanted
