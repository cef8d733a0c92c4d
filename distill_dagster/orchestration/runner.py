"""Plan and execute the runs that bring a task up to date."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import dagster as dg

from distill_dagster.config import BudgetSpec
from distill_dagster.core import progress
from distill_dagster.core.database_urls import get_store_url
from distill_dagster.core.errors import InputError
from distill_dagster.core.paths import Home
from distill_dagster.orchestration.in_process import run_in_process
from distill_dagster.orchestration.partitions import get_latest_versions, sync_students
from distill_dagster.orchestration.refresh_policy import RefreshPolicy, explain_blocked, explain_pending
from distill_dagster.orchestration.run_outcome import RunOutcome, read_outcome
from distill_dagster.orchestration.run_plan import Batch, RunPlanner
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.orchestration.tags import CAMPAIGN_TAG, build_budget_tags
from distill_dagster.pipeline.backfill_selection import SLICE_STAGES
from distill_dagster.pipeline.freshness import ArtifactStatus, TaskState
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.pipeline.run_events import RunEvent, RunEventKind, RunListener
from distill_dagster.pipeline.stage_table import STAGES, Stage, get_stage_job_name
from distill_dagster.pipeline.teacher_check import find_environment_problems, list_stage_teachers
from distill_dagster.pipeline.teacher_pauses import TeacherPauses
from distill_dagster.tables.lake import ArtifactRecord, format_artifact_name
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.reading import TASK_FILE
from distill_dagster.teacher.completions.ledger import NO_CAP
from distill_dagster.teacher.imagine.plan import count_imagine_requests

TEACHER_STAGES = {"teacher_prior", "golden_completions", "teacher_completions"}


class Runner:
    """Brings one task up to date: runs what is missing or stale, in order, until nothing is left."""

    def __init__(
        self,
        home: Home,
        folder: TaskFolder,
        instance: dg.DagsterInstance,
        defs: dg.Definitions,
        campaign: str | None = None,
        cap: BudgetSpec = NO_CAP,
    ) -> None:
        """Args:
        campaign: The id of the outer run, if there is one.
        cap: What this campaign may spend.
        """
        self.home, self.folder, self.instance = home, folder, instance
        self.lake = open_lake(home)
        self.state = TaskState(folder, self.lake)
        self.campaign = campaign or uuid.uuid4().hex
        self.cap = cap
        self._defs = defs
        self._unreported: set[str] = set()
        self._stages: set[str] | None = None
        self._again: set[str] = set()
        self._policy: RefreshPolicy | None = None
        self._pauses = TeacherPauses(folder, home)
        self._expected: set[str] = set()

    def refresh(self, students: list[str], notify: RunListener, force: bool) -> RunSummary:
        """Run what is not fresh, except what the refresh policy says can wait. `force` ignores the policy."""
        self._policy = None if force else RefreshPolicy(self.folder, self.lake, self.cap)
        return self.run(None, students, notify)

    def backfill(self, slices: list[str], notify: RunListener, again: bool) -> RunSummary:
        """Materialize these slices up to scored_completions, with what they need.

        Args:
            again: Materialize them even if they are fresh.
        """
        self._stages = _add_upstream(SLICE_STAGES, self.state.stages)
        self._again = {format_artifact_name(stage, key) for stage in SLICE_STAGES for key in slices} if again else set()
        return self.run(slices, [], notify)

    def release(self, student: str, notify: RunListener) -> RunSummary:
        """Release a student from what was made, and make nothing else."""
        self._stages = {"release"}
        self._again = {format_artifact_name("release", student)}
        return self.run(None, [student], notify)

    def imagine(self, slices: list[str], notify: RunListener) -> RunSummary:
        """Make the prompts of these slices again, and imagine as many as their targets require."""
        self._stages = _add_upstream(["seed_prompts"], self.state.stages)
        self._again = {format_artifact_name("seed_prompts", key) for key in slices}
        return self.run(slices, [], notify)

    def run(self, slices: list[str] | None, students: list[str], notify: RunListener) -> RunSummary:
        """Materialize what is not fresh. A failed partition blocks only what needs it."""
        summary, started, tried = RunSummary(), time.perf_counter(), set[str]()
        self._unreported = self._find_unreported(slices, students)
        sync_students(self.folder, self.instance, students)
        self._expected = self._find_expected(slices, students)
        self._require_environment(slices, students)
        with self._pauses:
            self._make_all(slices, students, tried, summary, notify)
        if summary.runs:
            self._add_spending(summary)
        for status in self._list_statuses(slices, students):
            if status.state == "fresh" and (why := _explain_failed_checks(status.record)):
                summary.failed[status.name] = why
        summary.wall_s = time.perf_counter() - started
        return summary

    def reload(self) -> None:
        """Read files and records again: others may have changed them."""
        self.state = TaskState(self.folder, self.lake)

    def _make_all(
        self,
        slices: list[str] | None,
        students: list[str],
        tried: set[str],
        summary: RunSummary,
        notify: RunListener,
    ) -> None:
        """Execute one run after the other in this process, until nothing is due."""
        with ExitStack() as server:
            has_server = False
            while batch := self._get_planner().plan_next(self._list_statuses(slices, students), tried, summary):
                if STAGES[batch[0].asset].partition in ("student", "assistant"):
                    # Stop the server. With its threads and PyTorch's there are more threads than cores, and training
                    # takes 1.5 times as long.
                    server.close()
                    has_server = False
                elif not has_server and any(self._needs_server(s) for s in batch):
                    self._hold_server(server)
                    has_server = True
                names = tuple(s.name for s in batch)
                self._expected |= set(names)
                start = RunEvent("start", names, step=len(tried) + 1, steps=len(self._expected))
                tried |= set(names)
                self._execute(batch, summary, notify, start)

    def _get_planner(self) -> RunPlanner:
        return RunPlanner(self.state, self._pauses, self._policy, self._unreported | self._again)

    def _require_environment(self, slices: list[str] | None, students: list[str]) -> None:
        """Refuse to begin what would fail for a missing key or package after something was paid for or trained.

        A task's only teacher is asked before all else, so that its first stage fails and says the same.

        Raises:
            InputError: A stage that is due asks a teacher, and the environment lacks something.
        """
        due = [s for s in self._list_statuses(slices, students) if s.state != "fresh" or s.name in self._again]
        readable = (status for status in due if status.state != "malformed")
        if any(list_stage_teachers(self.folder, status.asset, status.partition) for status in readable):
            found = find_environment_problems(self.folder.path / TASK_FILE, self.folder.task)
            task = self.folder.task
            needed = {*students, *task.list_assistants(students)}
            others = tuple(f"students.{name}." for name in task.students if name not in needed)
            problems = [problem for problem in found if not str(problem.field).startswith(others)]
            if any(not str(problem.field).startswith("teacher.") for problem in problems):
                raise InputError(problems)

    def _add_spending(self, summary: RunSummary) -> None:
        """Read from the ledger what this campaign spent, failed requests included."""
        from distill_dagster.teacher.completions.store import open_store

        with open_store(self.home.store, get_store_url()) as store:
            spent = store.sum_spending(self.folder.name, self.campaign)
        summary.teacher_calls, summary.cost_usd, summary.reserved_usd = spent.calls, spent.usd, spent.reserved_usd

    def _list_statuses(self, slices: list[str] | None, students: list[str]) -> list[ArtifactStatus]:
        statuses = self.state.list_statuses(students, slices, explicit=self._stages is not None)
        return [status for status in statuses if self._stages is None or status.asset in self._stages]

    def _find_unreported(self, slices: list[str] | None, students: list[str]) -> set[str]:
        """Find artifacts of the lake that this Dagster instance does not know: its storage was moved or removed."""
        unreported, known = set(), dict[str, dict[str | None, str]]()
        for status in self._list_statuses(slices, students):
            if status.record is None:
                continue
            if status.asset not in known:
                key, kind = dg.AssetKey([self.folder.name, status.asset]), dg.DagsterEventType.ASSET_MATERIALIZATION
                known[status.asset] = get_latest_versions(self.instance, key, status.partition is not None, kind)
            if known[status.asset].get(status.partition) != status.record.data_version:
                unreported.add(status.name)
        return unreported

    def _find_expected(self, slices: list[str] | None, students: list[str]) -> set[str]:
        """Find the artifacts that are not fresh, and all that are made from them, for counting the steps."""
        expected, changed = set[str](), set[str]()
        for status in self._list_statuses(slices, students):
            inputs = self.state.find_inputs(self.state.stages[status.asset], status.partition)
            if status.state != "fresh" or changed & inputs.keys():
                changed.add(status.name)
            elif status.name not in self._unreported | self._again:
                continue
            expected.add(status.name)
        return expected

    def _needs_server(self, status: ArtifactStatus) -> bool:
        """Say whether a stage asks the teacher. Seed prompts do if the slice needs imagined ones."""
        if status.asset == "seed_prompts" and status.partition is not None and status.state != "malformed":
            return bool(count_imagine_requests(self.folder.task, self.folder.read_slice(status.partition)).prompts)
        return status.asset in TEACHER_STAGES

    def _hold_server(self, stack: ExitStack) -> None:
        """Keep the embedded server, if the task uses it, running until the stack closes."""
        from distill_dagster.teacher.providers.embedded import EMBEDDED_SERVERS

        spec = self.folder.task.teacher
        if spec.is_embedded:
            progress.report_progress("starting the server of the embedded teacher", 0, 0)
            _, lease = EMBEDDED_SERVERS.acquire(spec, self.home.models)
            stack.callback(EMBEDDED_SERVERS.release, lease)

    def _execute(self, batch: Batch, summary: RunSummary, notify: RunListener, start: RunEvent) -> None:
        notify(start)
        partition = batch[0].partition
        job = self._defs.resolve_job_def(get_stage_job_name(self.folder.name, STAGES[batch[0].asset]))
        assets = [dg.AssetKey([self.folder.name, s.asset]) for s in batch]
        tags = {CAMPAIGN_TAG: self.campaign} | build_budget_tags(self.cap)

        def notify_wait(holder: str | None) -> None:
            notify(replace(start, kind="waiting" if holder else "resumed", why=holder or ""))

        try:
            result = run_in_process(job, self.instance, partition, assets, tags, notify_wait)
        except dg.DagsterUnknownPartitionError:
            reasons = {s.name: "its slice has been removed" for s in batch}
            summary.failed |= reasons
            notify(replace(start, kind="failed", reasons=reasons))
            return
        self._take_in(batch, read_outcome(result.run_id, result.all_events, result.success), summary, notify, start)

    def _take_in(
        self, batch: Batch, outcome: RunOutcome, summary: RunSummary, notify: RunListener, start: RunEvent
    ) -> None:
        """Note what a run made, and why it did not make the rest."""
        summary.runs += outcome.run_ids
        reasons, took_s = dict[str, str](), dict[str, float]()
        self.state.forget((status.asset, status.partition) for status in batch)
        for status in batch:
            key = dg.AssetKey([self.folder.name, status.asset])
            step = key.to_python_identifier()
            needs = self.state.find_inputs(self.state.stages[status.asset], status.partition)
            if step in outcome.took_s:
                took_s[status.name] = outcome.took_s[step]
            if key in outcome.made:
                self._add_artifact(status, summary)
                if why := _explain_failed_checks(self.state.read_record(status.asset, status.partition)):
                    reasons[status.name] = why
            elif why := outcome.pending.get(key) or explain_pending(needs, summary):
                summary.pending[status.name] = reasons[status.name] = why
            elif step not in outcome.failures and (why := explain_blocked(self.state, status, needs, summary)):
                summary.blocked[status.name] = reasons[status.name] = why  # Dagster skipped it: an earlier step failed
            else:
                summary.failed[status.name] = reasons[status.name] = outcome.explain_failure(step)
        kind: RunEventKind = "pending" if outcome.pending else "done" if outcome.success else "failed"
        notify(replace(start, kind=kind, reasons=reasons, took_s=took_s))

    def _add_artifact(self, status: ArtifactStatus, summary: RunSummary) -> None:
        summary.partitions.setdefault(status.asset, []).append(status.partition)
        record = self.state.read_record(status.asset, status.partition)
        extra = record.extra if record else {}
        summary.teacher_calls_cached += extra.get("teacher_calls_cached", 0)
        summary.model_s += extra.get("model_s", 0.0)
        summary.prompt_tokens += extra.get("prompt_tokens", 0)
        summary.completion_tokens += extra.get("completion_tokens", 0)
        self._unreported.discard(format_artifact_name(status.asset, status.partition))


def _explain_failed_checks(record: ArtifactRecord | None) -> str | None:
    """Say which blocking checks an artifact did not pass, or return None."""
    if record is None or not (names := record.extra.get("blocked")):
        return None
    details = record.extra.get("blocked_found") or "the UI shows what was found"
    return f"did not pass {', '.join(names)} ({details})"


def _add_upstream(names: Iterable[str], stages: Mapping[str, Stage]) -> set[str]:
    """Return the named stages and all stages upstream of them."""
    selected, queue = set[str](), list(names)
    while queue:
        name = queue.pop()
        if name in stages and name not in selected:
            selected.add(name)
            queue += stages[name].upstream
    return selected
