"""Back-off for rows that the teacher has not answered: when a refresh asks for them again."""

from __future__ import annotations

import time
from typing import Any

from distill_dagster.config import BudgetSpec
from distill_dagster.core.formatting import count_noun
from distill_dagster.tables.lake import ArtifactRecord
from distill_dagster.teacher.completions.ledger import get_current_month

FIRST_WAIT_S, LONGEST_WAIT_S = 3600.0, 86_400.0
"""Seconds until the third attempt, and the longest time between two attempts."""


def build_backoff_fields(
    before: ArtifactRecord | None, missing_rows: int, stopped: bool, budget: BudgetSpec
) -> dict[str, Any]:
    """The fields of a record with missing rows: how many attempts in a row had some, when, and the caps that applied.

    Args:
        before: the previous record of the same artifact.
        stopped: whether a cap of `budget` was reached.
    """
    if not missing_rows:
        return {}
    tries = before.extra.get("missing", {}).get("tries", 1) if before is not None and before.missing_rows else 0
    found: dict[str, Any] = {"tries": tries + 1, "at": time.time()}
    if stopped:
        found |= {"budget": budget.model_dump(), "month": get_current_month()}
    return {"missing": found}


def explain_wait(record: ArtifactRecord, budget: BudgetSpec, now: float) -> str | None:
    """Why a refresh does not ask for the missing rows of this artifact yet, or None if it does.

    After a budget stop, it asks again once a cap is raised or, with a cap per month, in a new month. After failures,
    the second attempt follows at once, the third after an hour, and each further one after twice that time, up to a
    day.
    """
    found = record.extra.get("missing")
    if not record.missing_rows or not found:
        return None
    if (caps := found.get("budget")) is not None:
        new = budget.model_dump()
        rose = any(cap is not None and (new[name] is None or new[name] > cap) for name, cap in caps.items())
        monthly = caps["month_usd"] is not None or caps["month_tokens"] is not None
        if rose or (monthly and found["month"] != get_current_month()):
            return None
        rows = count_noun(record.missing_rows, "row waits", "rows wait")
        return f"{rows} for a higher budget, in task.yaml or for this command"
    if found["tries"] < 2:
        return None
    due = found["at"] + min(FIRST_WAIT_S * 2 ** (found["tries"] - 2), LONGEST_WAIT_S)
    if now >= due:
        return None
    rows = count_noun(record.missing_rows, "row was", "rows were")
    return f"{rows} missing {found['tries']} times; asked for again in {(due - now) / 60:.0f} min"
