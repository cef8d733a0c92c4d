"""When a refresh asks for missing rows again."""

from __future__ import annotations

from typing import Any

import pytest

from distill_dagster.config import BudgetSpec
from distill_dagster.pipeline import retry_backoff
from distill_dagster.tables.lake import ArtifactRecord

CAP = BudgetSpec(usd=1.0, month_usd=10.0)


def record(missing_rows: int = 3, **extra: Any) -> ArtifactRecord:
    return ArtifactRecord("teacher_completions", "shop", "v", "1", {}, missing_rows=missing_rows, extra=extra)


def after(times: int, stopped: bool = False) -> ArtifactRecord:
    """The record after `times` runs in a row with missing rows."""
    found: ArtifactRecord | None = None
    for _ in range(times):
        found = record(**retry_backoff.build_backoff_fields(found, 3, stopped, CAP))
    assert found is not None
    return found


def at(found: ArtifactRecord) -> float:
    return float(found.extra["missing"]["at"])


def test_the_first_failure_is_retried_at_once_and_later_ones_less_and_less_often() -> None:
    one, two, three = after(1), after(2), after(3)
    assert retry_backoff.explain_wait(one, CAP, at(one)) is None
    assert "missing 2 times; asked for again in 60 min" in str(retry_backoff.explain_wait(two, CAP, at(two)))
    assert retry_backoff.explain_wait(two, CAP, at(two) + 3600) is None
    assert retry_backoff.explain_wait(three, CAP, at(three) + 3600) is not None
    assert retry_backoff.explain_wait(three, CAP, at(three) + 7200) is None
    many = after(30)
    assert retry_backoff.explain_wait(many, CAP, at(many) + 86_400) is None


def test_a_run_without_missing_rows_resets_the_back_off() -> None:
    assert retry_backoff.build_backoff_fields(after(5), 0, False, CAP) == {}
    assert retry_backoff.build_backoff_fields(record(missing_rows=0), 2, False, CAP)["missing"]["tries"] == 1


@pytest.mark.parametrize(
    ("budget", "waits"),
    [
        (CAP, True),
        (BudgetSpec(usd=0.5, month_usd=10.0), True),
        (BudgetSpec(usd=2.0, month_usd=10.0), False),
        (BudgetSpec(month_usd=10.0), False),
        (BudgetSpec(), False),
        (BudgetSpec(usd=1.0, month_usd=10.0, tokens=5), True),
    ],
)
def test_after_a_budget_stop_a_cap_has_to_be_raised(budget: BudgetSpec, waits: bool) -> None:
    stopped = after(1, stopped=True)
    assert (retry_backoff.explain_wait(stopped, budget, at(stopped) + 1e6) is not None) is waits


def test_a_new_month_brings_a_new_budget() -> None:
    stopped = after(1, stopped=True)
    stopped.extra["missing"]["month"] = "2020-01"
    assert retry_backoff.explain_wait(stopped, CAP, at(stopped)) is None
