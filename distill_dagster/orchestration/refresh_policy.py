"""Why an artifact that is due is not made now: it may wait, it waits for a batch, or something before it failed."""

from __future__ import annotations

import time
from dataclasses import dataclass

from distill_dagster.config import BudgetSpec
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.pipeline import retry_backoff
from distill_dagster.pipeline.dataset_drift import count_changed_rows
from distill_dagster.pipeline.freshness import ArtifactStatus, TaskState
from distill_dagster.pipeline.stage_table import MERGING_STAGE
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks import TaskFolder

RETRAINING_ASSETS = {"student_adapter", "slice_label_adapter", "predictions"}


@dataclass(frozen=True)
class RefreshPolicy:
    """How a refresh leaves things as they are for a while; `cap`: what its command may spend."""

    folder: TaskFolder
    lake: Lake
    cap: BudgetSpec

    def waits(self, status: ArtifactStatus) -> str | None:
        """Why a refresh leaves an artifact as it is.

        A student: nothing but the dataset changed, and that too little. Answers: nothing but missing rows, and those
        are not to be asked for yet.
        """
        record = status.record
        if record is not None and len(status.why) == 1:
            why = retry_backoff.explain_wait(record, self.folder.task.budget.capped(self.cap), time.time())
            if why is not None:
                return f"{why} (--force)"
        if status.asset not in RETRAINING_ASSETS or status.why != ("filtered_dataset changed",):
            return None
        assert status.partition is not None
        changed = count_changed_rows(self.lake, self.folder.name, status.partition)
        wanted = self.folder.task.refresh.min_new_rows
        if changed is None or changed > wanted:
            return None
        return f"{changed} rows changed since it was trained; more than {wanted} are wanted (--force)"


def explain_pending(needs: dict[str, str | None], outcome: RunSummary) -> str | None:
    """For what an artifact waits that comes with a batch: made now, it would be made again as soon as that ends."""
    return next((f"{name} waits for its batch" for name in needs if name in outcome.pending), None)


def explain_blocked(
    state: TaskState, status: ArtifactStatus, needs: dict[str, str | None], outcome: RunSummary
) -> str | None:
    """Why an artifact cannot be made now: something upstream failed, or did not pass its checks."""
    for name in needs:
        asset, _, rest = name.partition("[")
        if status.asset == MERGING_STAGE and rest and status.state != "waiting":
            continue  # a slice that failed gives its last good rows, or none
        if name in outcome.failed:
            return f"{name} failed"
        if name in outcome.blocked:
            return f"{name} is held back"
        if asset in state.stages:
            record = state.record(asset, rest.removesuffix("]") or None)
            if record is not None and record.extra.get("blocked"):
                return f"{name} did not pass {', '.join(record.extra['blocked'])}"
    return None
