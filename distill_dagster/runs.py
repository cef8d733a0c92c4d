"""Driving the assets from the command line: the same assets, in the same Dagster instance as the UI, in this process.

Part of the composition root `cli.py`; the only engine modules that import Dagster are these two and `definitions.py`.
"""

from __future__ import annotations

import os
import platform
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
from dagster._core.execution.plan.objects import ErrorSource
from dagster._core.storage.partition_status_cache import AssetPartitionStatus
from filelock import FileLock, Timeout

from distill_dagster import database, imagined, missing
from distill_dagster.errors import InputError
from distill_dagster.graph import MERGED, REFRESHES, STAGES, Stage, slices_name
from distill_dagster.lake import Lake, node
from distill_dagster.paths import PROJECT, Home
from distill_dagster.prompts.imagine import imagine_requests_needed
from distill_dagster.retraining import changed_rows
from distill_dagster.selection import SLICE_STAGES
from distill_dagster.sources import source_versions
from distill_dagster.spec import BudgetSpec
from distill_dagster.state import State, Status
from distill_dagster.tags import CAMPAIGN_TAG, DATA_VERSION_TAG, HOST_TAG, PID_TAG, budget_tags, run_tags
from distill_dagster.taskfiles import TaskFolder, check_folder
from distill_dagster.teacher.ledger import NO_CAP

POOLS = {"teacher", "training"}
TEACHER_STAGES = {"teacher_prior", "golden_completions", "teacher_completions"}
RETRAINED = {"student_adapter", "slice_label_adapter", "predictions"}


@dataclass
class Outcome:
    """What one command did.

    Calls and USD are those of its campaign's ledger, so that they count what failed or stopped at the budget too; the
    rest is added up over what was made.
    """

    runs: list[str] = field(default_factory=list)
    partitions: dict[str, list[str | None]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    blocked: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, str] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)
    """What waits for answers of a batch, or for what does."""
    teacher_calls: int = 0
    teacher_calls_cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = 0.0
    reserved_usd: float = 0.0
    model_s: float = 0.0
    wall_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return {
            "runs": self.runs,
            "partitions": self.partitions,
            "failed": self.failed,
            "blocked": self.blocked,
            "waiting": self.waiting,
            "pending": self.pending,
            "teacher_calls": self.teacher_calls,
            "teacher_calls_cached": self.teacher_calls_cached,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "cost_usd": self.cost_usd,
            "reserved_usd": self.reserved_usd,
            "model_s": round(self.model_s, 2),
            "wall_s": round(self.wall_s, 2),
        }


POSTGRES_STORAGE = """
# Added because DISTILL_POSTGRES_URL is set: runs, events and schedules are in that database.
storage:
  postgres:
    postgres_url:
      env: DISTILL_POSTGRES_URL
"""


def instance_folder(home: Home) -> None:
    """Make the instance's folder, with the project's dagster.yaml, and point DAGSTER_HOME at it unless it is set.

    With DISTILL_POSTGRES_URL the file names that variable as storage, never its value. An instance of the user's own
    is left as it is.
    """
    if url := database.postgres_url():
        # Dagster reads the variable itself, here and in the processes that it starts.
        os.environ[database.POSTGRES] = url
    if not os.environ.get("DAGSTER_HOME"):
        os.environ["DAGSTER_HOME"] = str(home.instance)
    if os.environ["DAGSTER_HOME"] != str(home.instance):
        return
    home.instance.mkdir(parents=True, exist_ok=True)
    template, there = PROJECT / "dagster.yaml", home.instance / "dagster.yaml"
    wanted = (template.read_text() if template.exists() else "") + (POSTGRES_STORAGE if url else "")
    if wanted and (not there.exists() or there.read_text() != wanted):
        temporary = there.with_suffix(f".{os.getpid()}")  # processes may start at once
        temporary.write_text(wanted)
        temporary.replace(there)


@contextmanager
def open_instance(home: Home) -> Iterator[dg.DagsterInstance]:
    instance_folder(home)
    with database.opening():
        opened = dg.DagsterInstance.get()
        # Dagster makes a pool at its first use; on PostgreSQL two runs that do so at once fail.
        for pool in POOLS - opened.event_log_storage.get_concurrency_keys():
            opened.event_log_storage.initialize_concurrency_limit_to_default(pool)
    with opened as instance:
        _bury_dead_runs(instance)
        yield instance


def _bury_dead_runs(instance: dg.DagsterInstance) -> None:
    """Runs of a killed `distill` stay STARTED and keep their pool's slot: without this the next run waits for ever."""
    open_runs = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags={HOST_TAG: platform.node()})
    for record in instance.get_run_records(open_runs):
        run = record.dagster_run
        if not _alive(int(run.tags[PID_TAG]), record.start_time):
            instance.report_run_failed(run, "The process of this run is gone. `distill run` takes up what it left.")
            instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)


def _alive(pid: int, started: float | None) -> bool:
    """Whether the process that started a run at that time is still there, and not another one with its number."""
    try:
        process = psutil.Process(pid)
        later = started is not None and process.create_time() > started
        return not later and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def failed_slices(folder: TaskFolder, instance: dg.DagsterInstance) -> set[str]:
    """Slices of which the last run of any sliced asset failed."""
    slices = dg.DynamicPartitionsDefinition(name=slices_name(folder.name))
    keys = instance.get_dynamic_partitions(slices_name(folder.name))
    found = set()
    for stage in SLICE_STAGES:
        known = instance.get_status_by_partition(dg.AssetKey([folder.name, stage]), keys, slices) or {}
        found |= {key for key, status in known.items() if status == AssetPartitionStatus.FAILED}
    return found


def _with_upstream(names: Iterable[str], stages: Mapping[str, Stage]) -> set[str]:
    """The named stages and all that they are made from."""
    found, open_ = set[str](), list(names)
    while open_:
        name = open_.pop()
        if name in stages and name not in found:
            found.add(name)
            open_ += stages[name].upstream
    return found


def slice_changes(folder: TaskFolder, instance: dg.DagsterInstance) -> tuple[list[str], list[str]]:
    """Slices that are no partitions yet, and partitions that are no slices any more; sorted, since ranges follow the
    order of insertion."""
    keys, known = set(folder.slice_keys()), set(instance.get_dynamic_partitions(slices_name(folder.name)))
    return sorted(keys - known), sorted(known - keys)


def sync(folder: TaskFolder, instance: dg.DagsterInstance) -> None:
    """Slices become partitions, and the user's files are observed, as far as they changed."""
    new, gone = slice_changes(folder, instance)
    if new:
        instance.add_dynamic_partitions(slices_name(folder.name), new)
    for slice_ in gone:
        instance.delete_dynamic_partition(slices_name(folder.name), slice_)
    seen: dict[str, dict[str | None, str]] = {}
    for source, partition, version in source_versions(folder, list(folder.task.students)):
        key = dg.AssetKey([folder.name, source])
        if source not in seen:
            seen[source] = _latest_versions(instance, key, partition is not None, dg.DagsterEventType.ASSET_OBSERVATION)
        if not isinstance(version, InputError) and seen[source].get(partition) != version:
            tags = {DATA_VERSION_TAG: version}
            instance.report_runless_asset_event(dg.AssetObservation(key, partition=partition, tags=tags))


def _latest_versions(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitioned: bool, kind: dg.DagsterEventType
) -> dict[str | None, str]:
    """The data version of an asset's latest event, by partition: one query however many there are."""
    if partitioned:
        tags = instance.event_log_storage.get_latest_tags_by_partition(key, kind, [DATA_VERSION_TAG])
        return {partition: found[DATA_VERSION_TAG] for partition, found in tags.items() if DATA_VERSION_TAG in found}
    fetch = instance.fetch_observations
    if kind == dg.DagsterEventType.ASSET_MATERIALIZATION:
        fetch = instance.fetch_materializations
    latest = fetch(key, limit=1).records
    event = latest[0].asset_observation or latest[0].asset_materialization if latest else None
    return {None: version} if event and (version := (event.tags or {}).get(DATA_VERSION_TAG)) else {}


Event = Callable[[str, str], None]
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
        self.state = State(folder, self.lake)
        self.campaign = campaign or uuid.uuid4().hex
        self.cap = cap
        self._job = defs.resolve_implicit_global_asset_job_def()
        self._unrecorded: set[str] = set()
        self._stages: set[str] | None = None
        self._again: set[str] = set()
        self._min_new_rows: int | None = None
        self._patient = False

    def refresh(self, students: list[str], tell: Event, force: bool) -> Outcome:
        """As `run`, but a student waits while no more than `refresh.min_new_rows` rows of its dataset changed."""
        self._patient = not force
        self._min_new_rows = None if force else self.folder.task.refresh.min_new_rows
        return self.run(None, students, tell)

    def backfill(self, slices: list[str], tell: Event, again: bool) -> Outcome:
        """Materialize these slices up to scored_completions, and what they need; `again`: also where they are fresh."""
        self._stages = _with_upstream(SLICE_STAGES, self.state.stages)
        self._again = {node(stage, key) for stage in SLICE_STAGES for key in slices} if again else set()
        return self.run(slices, [], tell)

    def imagine(self, slices: list[str], tell: Event) -> Outcome:
        """Make the prompts of these slices anew, and no more: what they lack to their targets is imagined."""
        self._stages = _with_upstream(["seed_prompts"], self.state.stages)
        self._again = {node("seed_prompts", key) for key in slices}
        return self.run(slices, [], tell)

    def run(self, slices: list[str] | None, students: list[str], tell: Event) -> Outcome:
        """Materialize what is not fresh. A failed partition does not hold up the others, only what needs it."""
        outcome, started, tried = Outcome(), time.perf_counter(), set[str]()
        self.state = State(self.folder, self.lake)
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

    def _sum_up(self, outcome: Outcome) -> None:
        """What this campaign took, by the ledger: records of what was made know nothing of what failed."""
        from resources.doors import CompletionStoreResource

        with CompletionStoreResource(path=str(self.home.store), url=database.store_url()).open() as store:
            taken = store.taken(self.folder.name, self.campaign)
        outcome.teacher_calls, outcome.cost_usd, outcome.reserved_usd = taken.calls, taken.usd, taken.reserved_usd

    def _considered(self, slices: list[str] | None, students: list[str]) -> list[Status]:
        return [s for s in self.state.all(students, slices) if self._stages is None or s.asset in self._stages]

    def _missing_events(self, slices: list[str] | None, students: list[str]) -> set[str]:
        """Artifacts that the lake has and this Dagster instance does not know (its storage was moved or removed)."""
        found, known = set(), dict[str, dict[str | None, str]]()
        for status in self._considered(slices, students):
            if status.record is None:
                continue
            if status.asset not in known:
                key, kind = dg.AssetKey([self.folder.name, status.asset]), dg.DagsterEventType.ASSET_MATERIALIZATION
                known[status.asset] = _latest_versions(self.instance, key, status.partition is not None, kind)
            if known[status.asset].get(status.partition) != status.record.data_version:
                found.add(status.name)
        return found

    def _next(self, slices: list[str] | None, students: list[str], tried: set[str], outcome: Outcome) -> list[Status]:
        """The next run: the first artifact that is due and ready, and those of its partition that only wait for it."""
        # Looked at anew each time: what was held back may be due, or fresh, by now.
        outcome.waiting = {}
        outcome.blocked = {name: why for name, why in outcome.blocked.items() if name in tried}
        batch: list[Status] = []
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
            if waits := self._waits(status):
                outcome.waiting[status.name] = waits
                continue
            needs = self.state.inputs(self.state.stages[status.asset], status.partition)
            if awaited := self._awaited(needs, outcome):
                outcome.pending[status.name] = awaited
                continue
            if stuck := self._stuck(status, needs, outcome):
                outcome.blocked[status.name] = stuck
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

    def _waits(self, status: Status) -> str | None:
        """Why a refresh leaves an artifact as it is.

        A student: nothing but the dataset changed, and that too little. Answers: nothing but missing rows, and those
        are not to be asked for yet.
        """
        record = status.record
        if self._patient and record is not None and len(status.why) == 1:
            why = missing.waits(record, self.folder.task.budget.capped(self.cap), time.time())
            if why is not None:
                return f"{why} (--force)"
        if self._min_new_rows is None or status.asset not in RETRAINED or status.why != ("filtered_dataset changed",):
            return None
        assert status.partition is not None
        changed = changed_rows(self.lake, self.folder.name, status.partition)
        if changed is None or changed > self._min_new_rows:
            return None
        return f"{changed} rows changed since it was trained; more than {self._min_new_rows} are wanted (--force)"

    def _awaited(self, needs: dict[str, str | None], outcome: Outcome) -> str | None:
        """For what an artifact waits that comes with a batch: made now, it would be made again as soon as that ends."""
        return next((f"{name} waits for its batch" for name in needs if name in outcome.pending), None)

    def _stuck(self, status: Status, needs: dict[str, str | None], outcome: Outcome) -> str | None:
        """Why an artifact cannot be made now: something upstream failed, or did not pass its checks."""
        for name in needs:
            asset, _, rest = name.partition("[")
            if status.asset == MERGED and rest and status.state != "waiting":
                continue  # a slice that failed gives its last good rows, or none
            if name in outcome.failed:
                return f"{name} failed"
            if name in outcome.blocked:
                return f"{name} is held back"
            if asset in self.state.stages:
                record = self.state.record(asset, rest.removesuffix("]") or None)
                if record is not None and record.extra.get("blocked"):
                    return f"{name} did not pass {', '.join(record.extra['blocked'])}"
        return None

    def _asks(self, status: Status) -> bool:
        """Whether a stage will want the teacher's server; seed prompts do where the slice wants imagined ones."""
        if status.asset == "seed_prompts" and status.partition is not None and status.state != "malformed":
            return bool(imagine_requests_needed(self.folder.task, self.folder.slice(status.partition)).prompts)
        return status.asset in TEACHER_STAGES

    def _hold_server(self, held: ExitStack) -> None:
        """Keep one use of the embedded server, so that it stays warm between the runs of this command."""
        from distill_dagster.teacher.embedded import SERVERS

        spec = self.folder.task.teacher
        if spec.embedded:
            _, lease = SERVERS.acquire(spec, self.home.models)
            held.callback(SERVERS.release, lease)

    def _execute(self, batch: list[Status], outcome: Outcome, tell: Event) -> None:
        what = ", ".join(s.name for s in batch)
        tell("start", what)
        try:
            assets = [dg.AssetKey([self.folder.name, s.asset]) for s in batch]
            tags = run_tags(self.campaign) | budget_tags(self.cap)
            result = run_within(self._job, self.instance, batch[0].partition, assets, tags)
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
        pending = pending_in(result)
        self.state.forget((status.asset, status.partition) for status in batch)
        for status in batch:
            key = dg.AssetKey([self.folder.name, status.asset])
            step = key.to_python_identifier()
            needs = self.state.inputs(self.state.stages[status.asset], status.partition)
            if key in made:
                self._count(status, outcome)
            elif why := pending.get(key) or self._awaited(needs, outcome):
                outcome.pending[status.name] = why
            elif step not in failures and (stuck := self._stuck(status, needs, outcome)):
                outcome.blocked[status.name] = stuck  # Dagster left it out, since a step before it failed
            else:
                outcome.failed[status.name] = failure_message(failures.get(step) or whole)
        tell("pending" if pending else "done" if result.success else "failed", what)

    def _count(self, status: Status, outcome: Outcome) -> None:
        outcome.partitions.setdefault(status.asset, []).append(status.partition)
        record = self.state.record(status.asset, status.partition)
        extra = record.extra if record else {}
        outcome.teacher_calls_cached += extra.get("teacher_calls_cached", 0)
        outcome.model_s += extra.get("model_s", 0.0)
        outcome.prompt_tokens += extra.get("prompt_tokens", 0)
        outcome.completion_tokens += extra.get("completion_tokens", 0)
        self._unrecorded.discard(node(status.asset, status.partition))


def run_within(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    partition: str | None,
    assets: Sequence[dg.AssetKey] | None,
    tags: Mapping[str, str],
) -> dg.ExecuteInProcessResult:
    """One run in this process, quiet on the console; a failure is in the result.

    Args:
        tags: with the campaign, which is the id of the run that this one belongs to, if there is one.

    Raises:
        DagsterUnknownPartitionError: the slice was removed meanwhile.
        KeyboardInterrupt: the run was interrupted, or the one it belongs to is being cancelled. Dagster swallows the
            interrupt of an in-process run; whoever makes many of them has to stop by himself.
    """
    result = job.execute_in_process(
        instance=instance,
        partition_key=partition,
        asset_selection=assets,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags=tags,
        raise_on_error=False,
    )
    outer = instance.get_run_by_id(tags[CAMPAIGN_TAG])
    stopped = outer is not None and outer.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    if stopped or any(failure.error_source == ErrorSource.INTERRUPT for failure in failures):
        raise KeyboardInterrupt
    return result


def pending_in(result: dg.ExecuteInProcessResult) -> dict[dg.AssetKey, str]:
    """Which assets a run left out since their batches are not ready, and why: they said so in an observation."""
    seen = [event.asset_observation_data.asset_observation for event in result.get_asset_observation_events()]
    return {one.asset_key: one.description or "" for one in seen}


def refresh_task(runner: Runner, students: list[str], force: bool, tell: Event) -> Outcome:
    """What `distill refresh` and the schedule do: bring a task up to date, and say in Dagster that it was done.

    Args:
        students: by default those that were trained before, or the task's chosen one.

    Raises:
        InputError: task.yaml or a JSONL file is malformed. A malformed slice fails alone.
    """
    with _alone(runner.home.locks / f"{runner.folder.name}.refresh", tell):
        return _refresh_task(runner, students, force, tell)


@contextmanager
def _alone(lock: Path, tell: Event) -> Iterator[None]:
    """Two refreshes of a task would train the same student twice. The second one waits, and finds little to do."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)  # the system frees it when its process ends, however it ends
    try:
        held.acquire(timeout=0)
    except Timeout:
        tell("waiting", "another refresh of this task is under way")
        held.acquire()
    try:
        yield
    finally:
        held.release()


def _refresh_task(runner: Runner, students: list[str], force: bool, tell: Event) -> Outcome:
    folder, lake, instance = runner.folder, runner.lake, runner.instance
    apart = (folder.path / "slices", folder.accepted, folder.accepted and folder.accepted / imagined.FOLDER)
    if errors := [p for p in check_folder(folder) if p.severity == "error" and p.file.parent not in apart]:
        raise InputError(errors)
    trained = [s for s in folder.task.students if lake.record(folder.name, "student_adapter", s) is not None]
    sync(folder, instance)
    return runner.refresh(students or trained or [folder.task.chosen_student], tell, force)


def refresh_event(task: str, outcome: Outcome) -> dg.AssetMaterialization:
    """The event of one refresh: Dagster draws its figures over time, and knows when the last one was."""
    made = [node(asset, partition) for asset, keys in outcome.partitions.items() for partition in keys]
    metadata: dict[str, Any] = {
        "runs": len(outcome.runs),
        "artifacts": len(made),
        "made": ", ".join(made[:200]) or "nothing",
        "teacher_calls": outcome.teacher_calls,
        "teacher_calls_cached": outcome.teacher_calls_cached,
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": outcome.completion_tokens,
        "cost_usd": "unknown" if outcome.cost_usd is None else outcome.cost_usd,
        "failed": len(outcome.failed),
        "waiting": "; ".join(f"{n}: {why}" for n, why in (outcome.waiting | outcome.pending).items()) or "nothing",
        "wall_s": round(outcome.wall_s, 1),
    }
    return dg.AssetMaterialization([task, REFRESHES], metadata=metadata)


def failure_message(error: Any) -> str:
    """The innermost message of a step's failure, without Dagster's frame around it."""
    if error is None:
        return "the step failed; its log is in the UI"
    while error.cause is not None:
        error = error.cause
    return str(error.message).split(": ", 1)[-1].strip()
