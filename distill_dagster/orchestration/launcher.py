"""Hand runs to the Dagster instance: its queue, daemon and run launcher start them wherever they are configured to.

The code location is asked for each job, so that a run carries what its launcher needs, such as a container image.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
from dagster._core.definitions.selector import JobSubsetSelector
from dagster._core.execution.backfill import BulkActionStatus, PartitionBackfill
from dagster._core.remote_representation.code_location import CodeLocation
from dagster._core.remote_representation.external import RemotePartitionSet, RemoteRepository
from dagster._core.run_coordinator import QueuedRunCoordinator
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.tags import ASSET_PARTITION_RANGE_END_TAG, ASSET_PARTITION_RANGE_START_TAG
from dagster._core.workspace.context import WorkspaceProcessContext, WorkspaceRequestContext
from dagster._core.workspace.load_target import WorkspaceFileTarget

from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import Home
from distill_dagster.orchestration.retried_runs import find_attempts, is_retried
from distill_dagster.orchestration.run_outcome import EVENT_TYPES, RunOutcome, read_outcome
from distill_dagster.orchestration.tags import BACKFILL_TAG, CAMPAIGN_TAG, LAUNCH_TAG, PARTITION_SET_TAG, PARTITION_TAG

HEARTBEAT_S = 120.0
"""Seconds after which a daemon that gave no sign of life is taken for stopped. It gives one every 30 seconds."""
SUBMITTED_STATUSES = [status for status in NOT_FINISHED_STATUSES if status != dg.DagsterRunStatus.NOT_STARTED]
"""Of a run that has not ended. One that was created and never submitted, because its command was killed, is not."""
START_DAEMON = "Start the UI (`distill ui`), or the daemon of the deployment, then run the same command again."


@dataclass
class Launcher:
    """Submits runs of one campaign and says how they stand. Opened by `open_launcher`.

    Args:
        tags: The campaign's tags, which each run carries.
    """

    instance: dg.DagsterInstance
    workspace: WorkspaceRequestContext
    campaign: str
    tags: Mapping[str, str]
    title: str
    _began: float = field(default_factory=time.time)
    _backfilled: list[str] = field(default_factory=list)

    def submit(
        self, job: str, assets: Sequence[dg.AssetKey], groups: Sequence[Sequence[str | None]], is_backfill: bool
    ) -> Generator[str, None, None]:
        """Put a run for each group of partitions into the instance's queue, and yield its id.

        Args:
            groups: The partitions of each run: one, or a range of several slices in Dagster's order.
            is_backfill: Whether the runs belong to the campaign's backfill in Dagster, which is one of a single job.

        Raises:
            DistillError: The code location does not know the job, or the backfill was cancelled meanwhile.
        """
        location, repository = self._find_job(job)
        selector = JobSubsetSelector(
            location_name=location.name,
            repository_name=repository.name,
            job_name=job,
            op_selection=None,
            asset_selection=list(assets),
        )
        remote_job = location.get_job(selector)
        plan = location.get_execution_plan(remote_job, {}, None, None, self.instance)
        partition_set = next((one for one in repository.get_partition_sets() if one.job_name == job), None)
        shared = {**remote_job.tags, **self.tags, LAUNCH_TAG: self.campaign}
        if is_backfill:
            shared[BACKFILL_TAG] = self.campaign
        try:
            for partitions in groups:
                tags = shared | _build_partition_tags(partitions, partition_set)
                run = self.instance.create_run(
                    job_name=job,
                    run_id=None,
                    run_config={},
                    status=dg.DagsterRunStatus.NOT_STARTED,
                    tags=tags,
                    root_run_id=None,
                    parent_run_id=None,
                    step_keys_to_execute=None,
                    execution_plan_snapshot=plan.execution_plan_snapshot,
                    job_snapshot=remote_job.job_snapshot,
                    parent_job_snapshot=remote_job.parent_job_snapshot,
                    asset_selection=frozenset(assets),
                    asset_check_selection=None,
                    resolved_op_selection=None,
                    op_selection=None,
                    remote_job_origin=remote_job.get_remote_origin(),
                    job_code_origin=remote_job.get_python_origin(),
                    asset_graph=repository.asset_graph,
                )
                self.instance.submit_run(run.run_id, self.workspace)
                if is_backfill:
                    self._backfilled += [partition for partition in partitions if partition is not None]
                yield run.run_id
        finally:
            if is_backfill and partition_set is not None and self._backfilled:
                self._record_backfill(partition_set)

    def _record_backfill(self, partition_set: RemotePartitionSet) -> None:
        """Record the submitted runs as a backfill, which the daemon completes once they end and the UI can cancel."""
        backfill = PartitionBackfill(
            backfill_id=self.campaign,
            partition_set_origin=partition_set.get_remote_origin(),
            status=BulkActionStatus.REQUESTED,
            partition_names=list(dict.fromkeys(self._backfilled)),
            # All its runs are there already: the daemon has none to submit.
            last_submitted_partition_name=self._backfilled[-1],
            from_failure=False,
            reexecution_steps=None,
            tags=dict(self.tags),
            backfill_timestamp=self._began,
            title=self.title,
        )
        if self.instance.get_backfill(self.campaign) is None:
            self.instance.add_backfill(backfill)
        elif not self.is_canceled:
            self.instance.update_backfill(backfill)

    @property
    def is_canceled(self) -> bool:
        """Whether somebody cancelled the backfill in the UI."""
        backfill = self.instance.get_backfill(self.campaign)
        return backfill is not None and backfill.status in (BulkActionStatus.CANCELING, BulkActionStatus.CANCELED)

    def _find_job(self, job: str) -> tuple[CodeLocation, RemoteRepository]:
        for location in self.workspace.code_locations:
            for repository in location.get_repositories().values():
                if repository.has_job(job):
                    return location, repository
        raise DistillError(
            f"The running code location has no job {job!r}: it was loaded before the task was there, or its task.yaml "
            "has a mistake. Reload it in the UI (Deployment > Reload), then run the same command again."
        )

    def find_open(self, jobs: Collection[str]) -> list[str]:
        """Return the runs of these jobs that an earlier command handed over and that have not ended."""
        runs = self.instance.get_runs(dg.RunsFilter(statuses=SUBMITTED_STATUSES))
        return [run.run_id for run in runs if LAUNCH_TAG in run.tags and run.job_name in jobs]

    def count_started(self) -> int:
        """Count the runs of the campaign that have left the queue and have not ended."""
        statuses = [status for status in SUBMITTED_STATUSES if status != dg.DagsterRunStatus.QUEUED]
        return self.instance.get_runs_count(dg.RunsFilter(tags={LAUNCH_TAG: self.campaign}, statuses=statuses))

    def find_ended(self, runs: Collection[str]) -> list[str]:
        """Return which of these runs have ended for good, or were deleted, in the order given."""
        going = set(self.instance.get_run_ids(dg.RunsFilter(statuses=NOT_FINISHED_STATUSES)))
        return [run_id for run_id in runs if run_id not in going and not is_retried(self.instance, run_id)]

    def read_outcomes(self, run_id: str, partitions: Sequence[str | None]) -> dict[str | None, RunOutcome]:
        """Read how a run ended, for each of its partitions."""
        attempts = find_attempts(self.instance, run_id)
        if not attempts:
            whole = RunOutcome([run_id], False, message="its run was deleted")
        else:
            whole = self._read_outcome(attempts)
        if len(partitions) == 1:
            return {partitions[0]: whole}
        # A run over a range starts an inner run for each slice; see assets/range_runs.py.
        found: dict[str | None, RunOutcome] = {}
        for attempt in attempts:
            inner = self.instance.get_runs(dg.RunsFilter(tags={CAMPAIGN_TAG: attempt.run_id}))
            found |= {run.tags.get(PARTITION_TAG): self._read_outcome([run]) for run in reversed(inner)}
        return {partition: found.get(partition, whole) for partition in partitions}

    def _read_outcome(self, attempts: Sequence[dg.DagsterRun]) -> RunOutcome:
        """Read what a run and those in its place made together. They end as the last one did."""
        logs = (self.instance.all_logs(run.run_id, of_type=EVENT_TYPES) for run in attempts)
        events = [entry.dagster_event for log in logs for entry in log if entry.dagster_event is not None]
        outcome = read_outcome(attempts[0].run_id, events, attempts[-1].status == dg.DagsterRunStatus.SUCCESS)
        outcome.run_ids = [run.run_id for run in attempts]
        return outcome

    def check_daemon(self) -> None:
        """Check that a daemon takes runs from the queue.

        Raises:
            DistillError: None has given a sign of life for a while.
        """
        if not isinstance(self.instance.run_coordinator, QueuedRunCoordinator):
            return
        # slow to load
        from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

        beat = self.instance.get_daemon_heartbeats().get(QueuedRunCoordinatorDaemon.daemon_type())
        if beat is None or time.time() - beat.timestamp > HEARTBEAT_S:
            raise DistillError(f"No Dagster daemon takes runs from the queue of this instance. {START_DAEMON}")


def _build_partition_tags(partitions: Sequence[str | None], partition_set: RemotePartitionSet | None) -> dict[str, str]:
    first, last = partitions[0], partitions[-1]
    if first is None or last is None or partition_set is None:
        return {}
    named = {PARTITION_SET_TAG: partition_set.name}
    if len(partitions) == 1:
        return named | {PARTITION_TAG: first}
    return named | {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}


def divide_into_ranges(keys: Collection[str], known: Sequence[str], size: int) -> list[list[str]]:
    """Divide partitions into ranges of at most `size` that are adjacent in Dagster's order.

    Args:
        known: All partitions, in Dagster's order. Keys that are not among them are ranges of their own.
    """
    ranges: list[list[str]] = []
    previous: str | None = None
    for key in known:
        if key in keys:
            if ranges and previous == ranges[-1][-1] and len(ranges[-1]) < size:
                ranges[-1].append(key)
            else:
                ranges.append([key])
        previous = key
    return ranges + [[key] for key in keys if key not in known]


def count_open_runs(instance: dg.DagsterInstance, campaign: str) -> int:
    """Count the launched runs of a campaign that have not ended."""
    return instance.get_runs_count(dg.RunsFilter(tags={LAUNCH_TAG: campaign}, statuses=SUBMITTED_STATUSES))


def get_workspace_path(home: Home) -> Path:
    """The workspace file of a running `distill ui`."""
    return home.locks / "workspace.yaml"


@contextmanager
def open_launcher(
    instance: dg.DagsterInstance, workspace: Path, campaign: str, tags: Mapping[str, str], title: str
) -> Iterator[Launcher]:
    """Connect to the code locations that a workspace file names.

    Raises:
        DistillError: There is no such file, none of its code locations answers, or no daemon is running.
    """
    if not workspace.is_file():
        raise DistillError(f"No code location answers: there is no {workspace}. {START_DAEMON}")
    with WorkspaceProcessContext(instance, WorkspaceFileTarget([str(workspace)]), version=dg.__version__) as context:
        request = context.create_request_context()
        errors = [entry.load_error for entry in request.get_code_location_entries().values() if entry.load_error]
        if not request.code_locations:
            why = f" ({errors[0].message.strip().splitlines()[0]})" if errors and errors[0] else ""
            raise DistillError(f"No code location answers that {workspace} names{why}. {START_DAEMON}")
        launcher = Launcher(instance, request, campaign, tags, title)
        launcher.check_daemon()
        yield launcher
