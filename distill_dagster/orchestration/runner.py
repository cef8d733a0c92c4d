"""From what is there to what is wanted: which run comes next, until there is none."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import dagster as dg

from distill_dagster.config import BudgetSpec
from distill_dagster.core.database_urls import get_store_url
from distill_dagster.core.paths import Home
from distill_dagster.orchestration.in_process import find_pending_assets, get_failure_message, run_in_process
from distill_dagster.orchestration.partitions import get_latest_versions
from distill_dagster.orchestration.refresh_policy import RefreshPolicy, explain_blocked, explain_pending
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.orchestration.tags import build_budget_tags, build_run_tags
from distill_dagster.pipeline.backfill_selection import SLICE_STAGES
from distill_dagster.pipeline.freshness import ArtifactStatus, TaskState
from distill_dagster.pipeline.stage_table import STAGES, Stage
from distill_dagster.tables.lake import Lake, format_artifact_name
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.completions.ledger import NO_CAP
from distill_dagster.teacher.imagine.plan import count_imagine_requests

TEACHER_STAGES = {"teacher_prior", "golden_completions", "teacher_completions"}
RunListener = Callable[[str, str], None]
"""Called with ("start" | "done" | "failed" | "pending" | "waiting", what)."""


class Runner:
    """Brings one task up to date: runs what is missing or stale, in order, until nothing is."""

    def __init__(
        self,
        home: Home,
        folder: TaskFolder,
        instance: dg.DagsterInstance,
        defs: dg.Definitions,
        campaign: str | None = None,
        cap: BudgetSpec = NO_CAP,
    ) -> None:
        """`campaign`: the id of the run that this one's runs belong to, if there is one; `cap`: what it may spend."""
        self.home, self.folder, self.instance = home, folder, instance
        self.lake = Lake(home.lake, home.reports)
        self.state = TaskState(folder, self.lake)
        self.campaign = campaign or uuid.uuid4().hex
        self.cap = cap
        self._job = defs.resolve_implicit_global_asset_job_def()
        self._unrecorded: set[str] = set()
        self._stages: set[str] | None = None
        self._again: set[str] = set()
        self._patience: RefreshPolicy | None = None

    def refresh(self, students: list[str], tell: RunListener, force: bool) -> RunSummary:
        """As `run`, but a student waits while no more than `refresh.min_new_rows` rows of its dataset changed."""
        self._patience = None if force else RefreshPolicy(self.folder, self.lake, self.cap)
        return self.run(None, students, tell)

    def backfill(self, slices: list[str], tell: RunListener, again: bool) -> RunSummary:
        """Materialize these slices up to scored_completions, and what they need; `again`: also where they are fresh."""
        self._stages = _add_upstream(SLICE_STAGES, self.state.stages)
        self._again = {format_artifact_name(stage, key) for stage in SLICE_STAGES for key in slices} if again else set()
        return self.run(slices, [], tell)

    def imagine(self, slices: list[str], tell: RunListener) -> RunSummary:
        """Make the prompts of these slices anew, and no more: what they lack to their targets is imagined."""
        self._stages = _add_upstream(["seed_prompts"], self.state.stages)
        self._again = {format_artifact_name("seed_prompts", key) for key in slices}
        return self.run(slices, [], tell)

    def run(self, slices: list[str] | None, students: list[str], tell: RunListener) -> RunSummary:
        """Materialize what is not fresh. A failed partition does not hold up the others, only what needs it."""
        outcome, started, tried = RunSummary(), time.perf_counter(), set[str]()
        self.state = TaskState(self.folder, self.lake)
        self._unrecorded = self._missing_events(slices, students)
        with ExitStack() as server:
            holding = False
            while batch := self._next(slices, students, tried, outcome):
                if STAGES[batch[0].asset].partition == "student":
                    # OpenMP spins no more where the server's threads and PyTorch's outnumber the cores: training and
                    # predictions then take half as long again.
                    server.close()
                    holding = False
                elif not holding and any(self._asks(s) for s in batch):
                    self._hold_server(server)
                    holding = True
                tried |= {s.name for s in batch}
                self._execute(batch, outcome, tell)
        if outcome.runs:
            self._sum_up(outcome)
        for status in self._considered(slices, students):
            if status.state == "fresh" and status.record and (names := status.record.extra.get("blocked")):
                found = status.record.extra.get("blocked_found") or "the UI shows what was found"
                outcome.failed[status.name] = f"did not pass {', '.join(names)} ({found})"
        outcome.wall_s = time.perf_counter() - started
        return outcome

    def _sum_up(self, outcome: RunSummary) -> None:
        """What this campaign took, by the ledger: records of what was made know nothing of what failed."""
        from distill_dagster.teacher.completions.store import open_store

        with open_store(self.home.store, get_store_url()) as store:
            taken = store.taken(self.folder.name, self.campaign)
        outcome.teacher_calls, outcome.cost_usd, outcome.reserved_usd = taken.calls, taken.usd, taken.reserved_usd

    def _considered(self, slices: list[str] | None, students: list[str]) -> list[ArtifactStatus]:
        return [s for s in self.state.all(students, slices) if self._stages is None or s.asset in self._stages]

    def _missing_events(self, slices: list[str] | None, students: list[str]) -> set[str]:
        """Artifacts that the lake has and this Dagster instance does not know (its storage was moved or removed)."""
        found, known = set(), dict[str, dict[str | None, str]]()
        for status in self._considered(slices, students):
            if status.record is None:
                continue
            if status.asset not in known:
                key, kind = dg.AssetKey([self.folder.name, status.asset]), dg.DagsterEventType.ASSET_MATERIALIZATION
                known[status.asset] = get_latest_versions(self.instance, key, status.partition is not None, kind)
            if known[status.asset].get(status.partition) != status.record.data_version:
                found.add(status.name)
        return found

    def _next(
        self, slices: list[str] | None, students: list[str], tried: set[str], outcome: RunSummary
    ) -> list[ArtifactStatus]:
        """The next run: the first artifact that is due and ready, and those of its partition that only wait for it."""
        # Looked at anew each time: what was held back may be due, or fresh, by now.
        outcome.waiting = {}
        outcome.blocked = {name: why for name, why in outcome.blocked.items() if name in tried}
        batch: list[ArtifactStatus] = []
        planned: set[str] = set()
        forced = self._unrecorded | self._again
        considered = self._considered(slices, students)
        to_come = {s.name for s in considered if s.name not in tried and (s.state != "fresh" or s.name in forced)}
        for status in considered:
            if status.state == "malformed":
                outcome.failed[status.name] = "; ".join(status.why)
                continue
            due = status.state != "fresh" or status.name in forced
            if status.name in tried or not due:
                continue
            if batch and status.partition not in (None, batch[0].partition):
                continue  # cannot join this run, and is looked at again for the next one
            if self._patience and (waits := self._patience.waits(status)):
                outcome.waiting[status.name] = waits
                continue
            needs = self.state.inputs(self.state.stages[status.asset], status.partition)
            if why := explain_pending(needs, outcome):
                outcome.pending[status.name] = why
                continue
            if why := explain_blocked(self.state, status, needs, outcome):
                outcome.blocked[status.name] = why
                continue
            if not batch:
                if status.state != "waiting":
                    batch, planned = [status], {status.name}
            elif (
                (status.state in ("waiting", "missing") or status.name in self._again)
                and status.partition == batch[0].partition
                and all(version is not None or name in planned for name, version in needs.items())
                # What is made of stale parts now would be stale again at once, and is tried only once.
                and not (needs.keys() & to_come) - planned
            ):
                # A first fill, or all over again: nothing can stop the wave, so one run takes the whole chain.
                batch.append(status)
                planned.add(status.name)
        return batch

    def _asks(self, status: ArtifactStatus) -> bool:
        """Whether a stage will want the teacher's server; seed prompts do where the slice wants imagined ones."""
        if status.asset == "seed_prompts" and status.partition is not None and status.state != "malformed":
            return bool(count_imagine_requests(self.folder.task, self.folder.slice(status.partition)).prompts)
        return status.asset in TEACHER_STAGES

    def _hold_server(self, held: ExitStack) -> None:
        """Keep one use of the embedded server, so that it stays warm between the runs of this command."""
        from distill_dagster.teacher.providers.embedded import EMBEDDED_SERVERS

        spec = self.folder.task.teacher
        if spec.embedded:
            _, lease = EMBEDDED_SERVERS.acquire(spec, self.home.models)
            held.callback(EMBEDDED_SERVERS.release, lease)

    def _execute(self, batch: list[ArtifactStatus], outcome: RunSummary, tell: RunListener) -> None:
        what = ", ".join(s.name for s in batch)
        tell("start", what)
        try:
            assets = [dg.AssetKey([self.folder.name, s.asset]) for s in batch]
            tags = build_run_tags(self.campaign) | build_budget_tags(self.cap)
            result = run_in_process(self._job, self.instance, batch[0].partition, assets, tags)
        except dg.DagsterUnknownPartitionError:
            outcome.failed |= {s.name: "its slice was removed meanwhile" for s in batch}
            tell("failed", what)
            return
        outcome.runs.append(result.run_id)
        failures = {
            event.step_key: event.step_failure_data.error for event in result.all_events if event.is_step_failure
        }
        # A run may fail without a step that did: the instance's database, say, was gone for a moment.
        whole = next((e.job_failure_data.error for e in result.all_events if e.is_run_failure), None)
        made = {event.asset_key for event in result.get_asset_materialization_events()}
        pending = find_pending_assets(result)
        self.state.forget((status.asset, status.partition) for status in batch)
        for status in batch:
            key = dg.AssetKey([self.folder.name, status.asset])
            step = key.to_python_identifier()
            needs = self.state.inputs(self.state.stages[status.asset], status.partition)
            if key in made:
                self._count(status, outcome)
            elif why := pending.get(key) or explain_pending(needs, outcome):
                outcome.pending[status.name] = why
            elif step not in failures and (why := explain_blocked(self.state, status, needs, outcome)):
                outcome.blocked[status.name] = why  # Dagster left it out, since a step before it failed
            else:
                outcome.failed[status.name] = get_failure_message(failures.get(step) or whole)
        tell("pending" if pending else "done" if result.success else "failed", what)

    def _count(self, status: ArtifactStatus, outcome: RunSummary) -> None:
        outcome.partitions.setdefault(status.asset, []).append(status.partition)
        record = self.state.record(status.asset, status.partition)
        extra = record.extra if record else {}
        outcome.teacher_calls_cached += extra.get("teacher_calls_cached", 0)
        outcome.model_s += extra.get("model_s", 0.0)
        outcome.prompt_tokens += extra.get("prompt_tokens", 0)
        outcome.completion_tokens += extra.get("completion_tokens", 0)
        self._unrecorded.discard(format_artifact_name(status.asset, status.partition))


def _add_upstream(names: Iterable[str], stages: Mapping[str, Stage]) -> set[str]:
    """The named stages and all that they are made from."""
    found, open_ = set[str](), list(names)
    while open_:
        name = open_.pop()
        if name in stages and name not in found:
            found.add(name)
            open_ += stages[name].upstream
    return found
