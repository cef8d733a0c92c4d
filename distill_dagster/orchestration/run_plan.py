"""Plan the runs that can start now: which artifacts are due and ready, and which of them share a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill_dagster.orchestration.refresh_policy import RefreshPolicy, explain_blocked, explain_pending
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.pipeline.freshness import ArtifactStatus, TaskState
from distill_dagster.pipeline.stage_table import MERGING_STAGE, Partition
from distill_dagster.pipeline.teacher_pauses import TeacherPauses

Batch = list[ArtifactStatus]
"""The artifacts of one run, in order: all of one partition."""


@dataclass(frozen=True)
class RunPlanner:
    """Plans the runs of one command.

    Args:
        forced: Artifacts that are made even if they are fresh.
        policy: What a refresh leaves as it is for a while.
    """

    state: TaskState
    pauses: TeacherPauses
    policy: RefreshPolicy | None
    forced: set[str]

    def plan_next(self, statuses: Sequence[ArtifactStatus], tried: set[str], summary: RunSummary) -> Batch:
        """Plan one run: the first artifact that is due and ready, and those of its partition that wait for it."""
        return next(iter(self._plan(statuses, tried, summary, only_next=True)), [])

    def plan_all(self, statuses: Sequence[ArtifactStatus], tried: set[str], summary: RunSummary) -> list[Batch]:
        """Plan all runs that can start now and run at the same time: no one makes what another one reads."""
        return self._plan(statuses, tried, summary, only_next=False)

    def _plan(
        self, statuses: Sequence[ArtifactStatus], tried: set[str], summary: RunSummary, only_next: bool
    ) -> list[Batch]:
        # Decide again for each run: what was blocked may be due or fresh by now.
        summary.waiting = {}
        summary.blocked = {name: why for name, why in summary.blocked.items() if name in tried}
        batches: dict[tuple[Partition, str | None], Batch] = {}
        upcoming: set[str] = set()
        """What this plan or a later one makes, or may make."""
        is_shared_due = False
        due = {s.name for s in statuses if s.name not in tried and (s.state != "fresh" or s.name in self.forced)}
        for status in statuses:
            if status.state == "malformed":
                summary.failed[status.name] = "; ".join(status.why)
                continue
            stage = self.state.stages[status.asset]
            if status.name not in due:
                if not only_next and status.name not in tried:
                    inputs = self.state.find_inputs(stage, status.partition)
                    if upcoming.intersection([*inputs, *stage.after]):
                        upcoming.add(status.name)  # fresh only until its inputs change
                continue
            place = stage.partition, status.partition
            if only_next and batches and status.partition is not None and place not in batches:
                continue  # it cannot join this run; the next plan considers it again
            inputs = self.state.find_inputs(stage, status.partition)
            needed = [*inputs, *stage.after]
            if self._explain_wait(status, needed, summary):
                continue
            if stage.partition in ("student", "assistant"):
                needed.append(MERGING_STAGE)  # without a dataset there is no student to compare `seed_only` with
            if why := explain_blocked(self.state, status, needed, summary):
                summary.blocked[status.name] = why
                continue
            batch = batches.get(place)
            names = {s.name for s in batch or ()}
            if batch is None:
                # What all slices share comes first: then one run makes the whole chain of a slice.
                is_ready = not batches if only_next else not (is_shared_due or upcoming.intersection(needed))
                if is_ready and status.state != "waiting":
                    batches[place] = [status]
            elif (
                (status.state in ("waiting", "missing") or status.name in self.forced)
                and all(version is not None or name in names for name, version in inputs.items())
                # From stale inputs it would be stale again at once, and each artifact is tried only once.
                and not (inputs.keys() & due) - names
            ):
                # When a slice is made for the first time, one run makes the whole chain.
                batch.append(status)
            if status.state != "waiting" or upcoming.intersection(inputs):
                upcoming.add(status.name)
                is_shared_due |= status.partition is None
        return list(batches.values())

    def _explain_wait(self, status: ArtifactStatus, needed: Sequence[str], summary: RunSummary) -> bool:
        """Note why an artifact is left as it is for now, if it is."""
        if self.policy and (why := self.policy.explain_wait(status)):
            summary.waiting[status.name] = why
        elif why := self.pauses.explain_wait(status, only_new=self.policy is None):
            if self.policy:
                summary.waiting[status.name] = f"{why} (--force)"
            else:
                summary.pending[status.name] = why
        elif why := explain_pending(needed, summary):
            summary.pending[status.name] = why
        else:
            return False
        return True
