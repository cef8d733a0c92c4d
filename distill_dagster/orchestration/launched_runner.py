"""Bring a task up to date through runs that the Dagster instance starts, and follow them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import closing
from itertools import groupby
from pathlib import Path

import dagster as dg

from distill_dagster.config import BudgetSpec
from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.paths import Home
from distill_dagster.orchestration.launcher import (
    START_DAEMON,
    Launcher,
    count_open_runs,
    divide_into_ranges,
    get_workspace_path,
    open_launcher,
)
from distill_dagster.orchestration.run_plan import Batch
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.orchestration.runner import Runner
from distill_dagster.orchestration.tags import CAMPAIGN_TAG, build_budget_tags
from distill_dagster.pipeline.run_events import RunEvent, RunListener
from distill_dagster.pipeline.stage_table import STAGES, get_slices_partitions_name, get_stage_job_name
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.deployment_file import read_deployment
from distill_dagster.teacher.completions.ledger import NO_CAP

POLL_S = 1.0
"""Seconds between two looks at the runs."""
CHECK_S = 30.0
"""Seconds between two looks whether the daemon is alive."""
CHUNK = 25
"""Runs that are submitted before the next look at those that have ended, and at whether somebody cancelled."""


class LaunchedRunner(Runner):
    """A `Runner` whose runs the instance starts: by its queue, daemon and run launcher, each slice in a run of its own.

    The plan is the same. All that can run at the same time is submitted at once; what needs it is planned when it ends.
    """

    def __init__(
        self,
        home: Home,
        folder: TaskFolder,
        instance: dg.DagsterInstance,
        workspace: Path,
        campaign: str | None = None,
        cap: BudgetSpec = NO_CAP,
        slices_per_run: int = 1,
    ) -> None:
        """Args:
        workspace: Dagster's workspace file, with the code location that knows the task's jobs.
        slices_per_run: How many slices that are next to each other share a run.
        """
        super().__init__(home, folder, instance, dg.Definitions(), campaign, cap)
        self.workspace, self.slices_per_run = workspace, slices_per_run
        self._ended = 0
        self._open: dict[str, list[Batch]] = {}

    def _make_all(
        self,
        slices: list[str] | None,
        students: list[str],
        tried: set[str],
        summary: RunSummary,
        notify: RunListener,
    ) -> None:
        """Submit all runs that can start, follow them, and plan again, until nothing is due."""

        def plan() -> list[Batch]:
            return self._get_planner().plan_all(self._list_statuses(slices, students), tried, summary)

        if not plan():
            return
        tags = {CAMPAIGN_TAG: self.campaign} | build_budget_tags(self.cap)
        title = f"distill: {self.folder.name}"
        try:
            with open_launcher(self.instance, self.workspace, self.campaign, tags, title) as launcher:
                self._follow_earlier(launcher)
                while batches := plan():
                    self._submit(launcher, batches, tried, summary, notify)
                    self._follow(launcher, lambda: self._take_in_ended(launcher, summary, notify), notify)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._explain_interrupt()) from None

    def _follow_earlier(self, launcher: Launcher) -> None:
        """Wait for runs of this task that an earlier command handed over: they make what would be planned again."""
        jobs = {get_stage_job_name(self.folder.name, stage) for stage in self.state.stages.values()}
        earlier = found = launcher.find_open(jobs)
        while earlier:
            progress.report_progress("runs that an earlier command launched", len(found) - len(earlier), len(found))
            launcher.check_daemon()
            time.sleep(POLL_S)
            ended = set(launcher.find_ended(earlier))
            earlier = [run_id for run_id in earlier if run_id not in ended]
        if found:
            self.reload()

    def _submit(
        self, launcher: Launcher, batches: list[Batch], tried: set[str], summary: RunSummary, notify: RunListener
    ) -> None:
        def get_job(batch: Batch) -> tuple[str, tuple[str, ...]]:
            job = get_stage_job_name(self.folder.name, STAGES[batch[0].asset])
            return job, tuple(status.asset for status in batch)

        self._expected |= {status.name for batch in batches for status in batch}
        done, total = 0, len(batches)
        for (job, assets), members in groupby(sorted(batches, key=get_job), get_job):
            keys = [dg.AssetKey([self.folder.name, asset]) for asset in assets]
            by_partition = {batch[0].partition: batch for batch in members}
            is_backfill = STAGES[assets[0]].partition == "slice" and len(by_partition) > 1
            groups = self._divide(by_partition) if is_backfill else [[key] for key in by_partition]
            with closing(launcher.submit(job, keys, groups, is_backfill)) as submitted:
                for run_id, group in zip(submitted, groups, strict=True):
                    self._open[run_id] = [by_partition[partition] for partition in group]
                    tried |= {status.name for batch in self._open[run_id] for status in batch}
                    done += len(group)
                    progress.report_progress("handing runs to Dagster", done, total)
                    if len(self._open) % CHUNK == 0:
                        self._take_in_ended(launcher, summary, notify)
                        if launcher.is_canceled:
                            raise DistillError(f"The backfill {self.campaign} was cancelled in Dagster.")

    def _divide(self, slices: Collection[str | None]) -> list[list[str | None]]:
        """Divide slices among runs."""
        known = self.instance.get_dynamic_partitions(get_slices_partitions_name(self.folder.name))
        keys = {key for key in slices if key is not None}
        return [list(one) for one in divide_into_ranges(keys, known, self.slices_per_run)]

    def _follow(self, launcher: Launcher, take_in: Callable[[], None], notify: RunListener) -> None:
        """Wait until all submitted runs have ended.

        Raises:
            DistillError: The daemon stopped. The runs stay in the queue.
        """
        total, is_waiting, checked = self._count_open(), False, time.monotonic()
        while self._open:
            take_in()
            waits = bool(self._open) and launcher.count_started() == 0
            if waits != is_waiting:
                why = "all runs are in Dagster's queue; its limits and other runs decide when they start"
                notify(RunEvent("waiting", why=why) if waits else RunEvent("resumed"))
                is_waiting = waits
            if not waits:
                progress.report_progress("runs in Dagster", total - self._count_open(), total)
            if not self._open:
                break
            if time.monotonic() - checked > CHECK_S:
                checked = time.monotonic()
                try:
                    launcher.check_daemon()
                except DistillError:
                    runs = count_noun(len(self._open), "run is", "runs are")
                    raise DistillError(f"The Dagster daemon has stopped; {runs} left. {START_DAEMON}") from None
            time.sleep(POLL_S)

    def _take_in_ended(self, launcher: Launcher, summary: RunSummary, notify: RunListener) -> None:
        """Note the outcome of the runs that have ended."""
        for run_id in launcher.find_ended(list(self._open)):
            batches = {batch[0].partition: batch for batch in self._open.pop(run_id)}
            for partition, outcome in launcher.read_outcomes(run_id, list(batches)).items():
                names = tuple(status.name for status in batches[partition])
                start = RunEvent("start", names, step=self._ended + 1, steps=len(self._expected))
                notify(start)
                self._take_in(batches[partition], outcome, summary, notify, start)
                self._ended += len(names)

    def _count_open(self) -> int:
        return sum(len(batches) for batches in self._open.values())

    def _explain_interrupt(self) -> str:
        if not (open_runs := count_open_runs(self.instance, self.campaign)):
            return ""
        runs = count_noun(open_runs, "run goes on", "runs go on")
        return (
            f"{runs} in Dagster: nothing was cancelled. The same command follows them again. To cancel them, open "
            f"Runs in the UI, filter by the tag {CAMPAIGN_TAG}={self.campaign}, and terminate them; those of a "
            f"backfill also in Backfills > {self.campaign} > Cancel."
        )


def build_runner(
    home: Home,
    folder: TaskFolder,
    instance: dg.DagsterInstance,
    build_definitions: Callable[[Home], dg.Definitions],
    campaign: str | None = None,
    cap: BudgetSpec = NO_CAP,
    launch: bool | None = None,
) -> Runner:
    """Build the runner that the deployment asks for: in this process, or through the instance.

    Args:
        launch: What the command line says. None: `runs.launch` of deployment.yaml decides.

    Raises:
        InputError: deployment.yaml has a mistake.
    """
    runs = read_deployment().runs
    if not (runs.launch if launch is None else launch):
        return Runner(home, folder, instance, build_definitions(home), campaign, cap)
    workspace = Path(runs.workspace) if runs.workspace else get_workspace_path(home)
    return LaunchedRunner(home, folder, instance, workspace, campaign, cap, runs.slices_per_run)
