"""Decide which stale artifacts a refresh leaves as they are for now, and explain why."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass

from distill_dagster.config import BudgetSpec
from distill_dagster.core.formatting import count_noun
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.pipeline import retry_backoff
from distill_dagster.pipeline.dataset_drift import count_changed_rows
from distill_dagster.pipeline.freshness import ArtifactStatus, TaskState
from distill_dagster.pipeline.stage_table import STAGES
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks import TaskFolder

RETRAINING_ASSETS = {
    "assistant_adapter",
    "assistant_labels",
    "student_adapter",
    "slice_label_adapter",
    "predictions",
    "eval_report",
}
"""What waits until enough rows of the dataset changed. The report waits with its student."""


@dataclass(frozen=True)
class RefreshPolicy:
    """When a refresh leaves an artifact as it is for a while.

    Args:
        cap: What the command may spend.
    """

    folder: TaskFolder
    lake: Lake
    cap: BudgetSpec

    def explain_wait(self, status: ArtifactStatus) -> str | None:
        """Say why a refresh leaves an artifact as it is, or return None.

        A student waits while only its dataset changed, by few rows. Answers wait while only rows are missing and their
        back-off has not ended.
        """
        record = status.record
        if record is not None and len(status.why) == 1:
            why = retry_backoff.explain_wait(record, self.folder.task.budget.lower_to(self.cap), time.time())
            if why is not None:
                return f"{why} (--force)"
        rows_assets = ("filtered_dataset", "preference_pairs", "assistant_labels", "replay_rows")
        only_rows = all(why.startswith(rows_assets) for why in status.why)
        has_changed = any(re.fullmatch(r"(filtered_dataset|assistant_labels\[.*\]) changed", why) for why in status.why)
        if status.asset not in RETRAINING_ASSETS or not only_rows or not has_changed:
            return None
        assert status.partition is not None
        changed = count_changed_rows(self.lake, self.folder.name, self.folder.task, status.asset, status.partition)
        limit = self.folder.task.refresh.min_new_rows
        if changed is None or changed > limit:
            return None
        rows = count_noun(changed, "row")
        return f"{rows} changed since it was trained; it is trained after more than {limit} (or with --force)"


def explain_pending(needs: Iterable[str], summary: RunSummary) -> str | None:
    """Say which input waits for answers, or return None. The answers would make the artifact stale again."""
    return next((f"{name} waits for answers" for name in needs if name in summary.pending), None)


def explain_blocked(state: TaskState, status: ArtifactStatus, needs: Iterable[str], summary: RunSummary) -> str | None:
    """Say which input failed, is blocked or did not pass its checks, or return None."""
    for name in needs:
        asset, _, partition = name.partition("[")
        if STAGES[status.asset].merges_slices and partition and status.state != "waiting":
            continue  # a failed slice contributes its last good rows, or none
        if name in summary.failed:
            return f"{name} failed"
        if name in summary.blocked:
            return f"{name} is blocked"
        if asset in state.stages:
            record = state.read_record(asset, partition.removesuffix("]") or None)
            if record is not None and record.extra.get("blocked"):
                return f"{name} did not pass {', '.join(record.extra['blocked'])}"
    return None
