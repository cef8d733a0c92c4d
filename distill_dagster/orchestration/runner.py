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
from distill_dagster.orchestration.in_process import find_pending_assets, get_failure_message, run_in_process
from distill_dagster.orchestration.partitions import get_latest_versions, sync_students
from distill_dagster.orchestration.refresh_policy import RefreshPolicy, explain_blocked, explain_pending
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.orchestration.tags import CAMPAIGN_TAG, build_budget_tags
from distill_dagster.pipeline.backfill_selection import SLICE_STAGES
from distill_dagster.pipeline.freshness import ArtifactStatus, TaskState
from distill_dagster.pipeline.run_events import RunEvent, RunEventKind, RunListener
from distill_dagster.pipeline.stage_table import MERGING_STAGE, STAGES, Stage, get_stage_job_name
from distill_dagster.pipeline.teacher_check import find_environment_problems, list_stage_teachers
from distill_dagster.pipeline.teacher_pauses import TeacherPauses
from distill_dagster.tables.lake import ArtifactRecord, Lake, format_artifact_name
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
        self.lake = Lake(home.lake, home.reports)
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
        self.state = TaskState(self.folder, self.lake)
        self._unreported = self._find_unreported(slices, students)
        sync_students(self.folder, self.instance, students)
        self._expected = self._find_expected(slices, students)
        self._require_environment(slices, students)
        with self._pauses, ExitStack() as server:
            has_server = False
            while batch := self._plan_next_run(slices, students, tried, summary):
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
        if summary.runs:
            self._add_spending(summary)
        for status in self._list_statuses(slices, students):
            if status.state == "fresh" and (why := _explain_failed_checks(status.record)):
                summary.failed[status.name] = why
        summary.wall_s = time.perf_counter() - started
        return summary

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

    def _plan_next_run(
        self, slices: list[str] | None, students: list[str], tried: set[str], summary: RunSummary
    ) -> list[ArtifactStatus]:
        """Plan the next run: the first artifact that is due and ready, and those of its partition that wait for it."""
        # Decide again for each run: what was blocked may be due or fresh by now.
        summary.waiting = {}
        summary.blocked = {name: why for name, why in summary.blocked.items() if name in tried}
        batch: list[ArtifactStatus] = []
        planned: set[str] = set()
        forced = self._unreported | self._again
        statuses = self._list_statuses(slices, students)
        due = {s.name for s in statuses if s.name not in tried and (s.state != "fresh" or s.name in forced)}
        for status in statuses:
            if status.state == "malformed":
                summary.failed[status.name] = "; ".join(status.why)
                continue
            if status.name not in due:
                continue
            if batch and status.partition not in (None, batch[0].partition):
                continue  # it cannot join this run; the next plan considers it again
            if self._policy and (why := self._policy.explain_wait(status)):
                summary.waiting[status.name] = why
                continue
            if why := self._pauses.explain_wait(status, only_new=self._policy is None):
                if self._policy:
                    summary.waiting[status.name] = f"{why} (--force)"
                else:
                    summary.pending[status.name] = why
                continue
            needs = self.state.find_inputs(self.state.stages[status.asset], status.partition)
            stage = self.state.stages[status.asset]
            needed = [*needs, *stage.after]
            if why := explain_pending(needed, summary):
                summary.pending[status.name] = why
                continue
            if stage.partition in ("student", "assistant"):
                needed.append(MERGING_STAGE)  # without a dataset there is no student to compare `seed_only` with
            if why := explain_blocked(self.state, status, needed, summary):
                summary.blocked[status.name] = why
                continue
            if not batch:
                if status.state != "waiting":
                    batch, planned = [status], {status.name}
            elif (
                (status.state in ("waiting", "missing") or status.name in self._again)
                and (stage.partition, status.partition) == (STAGES[batch[0].asset].partition, batch[0].partition)
                and all(version is not None or name in planned for name, version in needs.items())
                # From stale inputs it would be stale again at once, and each artifact is tried only once.
                and not (needs.keys() & due) - planned
            ):
                # When a slice is made for the first time, one run makes the whole chain.
                batch.append(status)
                planned.add(status.name)
        return batch

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

    def _execute(self, batch: list[ArtifactStatus], summary: RunSummary, notify: RunListener, start: RunEvent) -> None:
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
        summary.runs.append(result.run_id)
        failures = {
            event.step_key: event.step_failure_data.error for event in result.all_events if event.is_step_failure
        }
        # A run can fail although no step did, for example when the instance's database was unreachable for a moment.
        run_error = next((e.job_failure_data.error for e in result.all_events if e.is_run_failure), None)
        made = {event.asset_key for event in result.get_asset_materialization_events()}
        pending = find_pending_assets(result)
        reasons = dict[str, str]()
        self.state.forget((status.asset, status.partition) for status in batch)
        for status in batch:
            key = dg.AssetKey([self.folder.name, status.asset])
            step = key.to_python_identifier()
            needs = self.state.find_inputs(self.state.stages[status.asset], status.partition)
            if key in made:
                self._add_artifact(status, summary)
                if why := _explain_failed_checks(self.state.read_record(status.asset, status.partition)):
                    reasons[status.name] = why
            elif why := pending.get(key) or explain_pending(needs, summary):
                summary.pending[status.name] = reasons[status.name] = why
            elif step not in failures and (why := explain_blocked(self.state, status, needs, summary)):
                summary.blocked[status.name] = reasons[status.name] = why  # Dagster skipped it: an earlier step failed
            else:
                why = get_failure_message(failures.get(step) or run_error)
                summary.failed[status.name] = reasons[status.name] = why
        kind: RunEventKind = "pending" if pending else "done" if result.success else "failed"
        notify(replace(start, kind=kind, reasons=reasons))

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
