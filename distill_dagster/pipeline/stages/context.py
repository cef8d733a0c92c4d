"""What all stages share: their surroundings, their inputs with the versions that were read, and their result."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from distill_dagster.config import BudgetSpec, TeacherSpec
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.core.limits import ResourceLimits
from distill_dagster.core.workers import IN_PROCESS, Workers
from distill_dagster.pipeline.check_catalogue import STAGE_CHECKS
from distill_dagster.pipeline.input_partitions import list_input_partitions
from distill_dagster.pipeline.retry_backoff import build_backoff_fields
from distill_dagster.pipeline.source_versions import compute_source_version, has_feature
from distill_dagster.pipeline.stage_table import MERGING_STAGE, REJECTED_ROWS, STAGES
from distill_dagster.student.ranks import LaunchRanks
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.lake import ArtifactRecord, Lake, format_artifact_name, read_folder_record
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tables.schemas import REJECTED
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.rows import collect_held_out_keys
from distill_dagster.teacher.completions.ledger import NO_CAP, Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.completions.usage import Usage
from distill_dagster.teacher.providers.client import Endpoint

MAX_CELL_CHARS = 160
"""Characters of a text in a sample table."""
MAX_BLOCKED_CHARS = 500
"""Characters that a record keeps of what blocking checks found."""


@dataclass(frozen=True)
class StageContext:
    """Everything that a stage needs from outside: the task, the lake, the store, models and teacher endpoints."""

    folder: TaskFolder
    lake: Lake
    store: CompletionStore
    models: Path
    reports: Path
    endpoint: Callable[[TeacherSpec], AbstractContextManager[Endpoint]]
    run_id: str = ""
    limits: ResourceLimits | None = None
    """Memory, threads and spill folder for stages that compare many rows."""
    campaign: str = ""
    """The unit that a budget covers: one command, backfill or refresh."""
    cap: BudgetSpec = NO_CAP
    """Caps of the campaign itself. The lower of a cap and the same cap in task.yaml's `budget` applies."""
    training: Path | None = None
    """The folder of checkpoints and TensorBoard files. None: trainings write neither."""
    releases: Path | None = None
    """The folder of releases. None: nothing can be released."""
    request_log: Path | None = None
    """The folder of the task's served requests. None: no router is calibrated on them."""
    workers: Workers = IN_PROCESS
    """Where parts of one large table are computed."""
    launch_ranks: LaunchRanks | None = None
    """Starts the processes that train one student together. None: those that `DISTILL_TRAINING_PROCESSES` names."""

    @property
    def task_name(self) -> str:
        """The name of the task folder, under which the lake stores its artifacts."""
        return self.folder.name

    def get_training_folder(self, asset: str, student: str) -> Path | None:
        """The folder of one training's checkpoints and TensorBoard files."""
        return self.training / self.task_name / asset / student if self.training is not None else None

    @property
    def budget(self) -> BudgetSpec:
        """The caps that apply: the lower of the campaign's and the task's."""
        return self.folder.task.budget.lower_to(self.cap)


@dataclass(frozen=True)
class Markdown:
    """A text that Dagster renders as Markdown."""

    text: str


@dataclass(frozen=True)
class SampleTable:
    """A small table for people."""

    rows: list[dict[str, str | int | float | bool | None]]


DisplayValue = str | int | float | bool | Path | Markdown | SampleTable


@dataclass(frozen=True)
class StageResult:
    """The record of the artifact that a stage made, what a person should see of it, and its checks."""

    record: ArtifactRecord
    shown: dict[str, DisplayValue] = field(default_factory=dict)
    checks: list[CheckResult] = field(default_factory=list)


def build_blocked_fields(asset: str, checks: list[CheckResult]) -> dict[str, Any]:
    """The fields of a record for failed blocking checks: their names and what they found. Empty if all passed."""
    blocking = {spec.name for spec in STAGE_CHECKS[asset] if spec.blocking}
    failed = [check for check in checks if not check.passed and check.name in blocking and check.severity == "error"]
    if not failed:
        return {}
    details = [f"{name} {value}" for check in failed for name, value in check.details.items() if value != ""]
    return {"blocked": [check.name for check in failed], "blocked_found": "; ".join(details)[:MAX_BLOCKED_CHARS]}


class StageInputs:
    """Reads the inputs of a stage, notes the data version of each, and builds the record from these versions.

    A stage can read only what the stage table declares for it, and has to read all of it. So no artifact depends on an
    input that `distill status` does not see, and none is stale because of an input that it never reads.
    """

    def __init__(self, env: StageContext, asset: str, partition: str | None) -> None:
        self.env, self.asset, self.partition = env, asset, partition
        self.stage = STAGES[asset]
        features = {feature for feature in self.stage.feature_upstream if has_feature(env.folder, feature)}
        declared = self.stage.list_upstream(features)
        # Slices are not listed here: a stage over all slices reads those that were made.
        self._needed = list_input_partitions(env.folder.task, self.stage, declared, partition, ())
        self.upstream = list(self._needed)
        """The names of the sources and stages that this partition of the stage reads in this task."""
        self.versions: dict[str, str] = {}
        """The data version of each input that was read, by artifact name."""
        env.lake.note_version(env.task_name, asset, partition)

    @property
    def account(self) -> Account:
        """The ledger account that the stage's teacher calls are booked under."""
        purpose = self.stage.purpose
        assert purpose is not None, f"{self.asset} asks no teacher"
        return Account(self.env.task_name, self.env.campaign or self.env.run_id, purpose, self.env.budget)

    def note_source(self, name: str, partition: str | None = None) -> None:
        """Note the version of a source. Call it before the content is used: both come from the same cached parse."""
        self._note(name, partition, compute_source_version(self.env.folder, name, partition))

    def read_table(self, asset: str, schema: pl.Schema, partition: str | None = None) -> pl.DataFrame:
        """Read the table of an upstream stage.

        Raises:
            DistillError: the table was never made, or it did not pass a blocking check.
        """
        frame, record = self.env.lake.read(self.env.task_name, asset, partition, schema)
        self._refuse_blocked(record)
        self._note(asset, partition, record.data_version)
        return frame

    def read_rejected_rows(self) -> pl.DataFrame:
        """Read the rows that the dataset leaves out.

        Raises:
            DistillError: the dataset was never made.
        """
        assert self.stage.reads_rejected_rows, f"{self.asset} reads rejected rows, which the stage table does not say"
        frame, record = self.env.lake.read(self.env.task_name, MERGING_STAGE, REJECTED_ROWS, REJECTED)
        self.versions[format_artifact_name(MERGING_STAGE, REJECTED_ROWS)] = record.data_version
        return frame

    def scan_last_good(
        self, asset: str, schema: pl.Schema, partition: str, folder: Path
    ) -> tuple[pl.LazyFrame, ArtifactRecord] | None:
        """The latest version of a slice's table that passed its checks, or None; `folder` keeps a link to it."""
        scanned = self.env.lake.scan_good(self.env.task_name, asset, partition, schema, folder)
        if scanned is not None:
            self._note(asset, partition, scanned[1].data_version)
        return scanned

    def find_folder(self, asset: str, partition: str) -> Path:
        """The folder of an upstream artifact that is not a table.

        Raises:
            DistillError: it was never made.
        """
        path = self.env.lake.get_folder(self.env.task_name, asset, partition)
        record = read_folder_record(path)
        if record is None:
            self.env.lake.read(self.env.task_name, asset, partition, pl.Schema({}))  # raises with a remedy
            raise AssertionError
        self._note(asset, partition, record.data_version)
        return path

    def read_held_out_keys(self) -> set[str]:
        """The normalized texts of golden and dev."""
        self.note_source("golden_set")
        return collect_held_out_keys(self.env.folder.golden, self.env.folder.dev)

    def build_record(self, version: str, rows: int, missing_rows: int = 0, **extra: Any) -> ArtifactRecord:
        """The record of the artifact, with the versions of all inputs. Call it after everything was read."""
        self._check_complete()
        return ArtifactRecord(
            asset=self.asset,
            partition=self.partition,
            data_version=version,
            code_version=self.stage.code_version,
            inputs=dict(sorted(self.versions.items())),
            rows=rows,
            missing_rows=missing_rows,
            extra=extra,
        )

    def write_table(
        self,
        frame: pl.DataFrame,
        checks: list[CheckResult],
        missing_rows: int = 0,
        usage: Usage | None = None,
        **extra: Any,
    ) -> ArtifactRecord:
        """Write the stage's table. Its record keeps failed blocking checks, and when missing rows are asked for again.

        Args:
            missing_rows: rows that a teacher has not answered yet.
            usage: what the stage's teacher calls took, and the budget cap that stopped them.
        """
        before = self.env.lake.read_record(self.env.task_name, self.asset, self.partition)
        extra |= build_blocked_fields(self.asset, checks)
        if usage is not None:
            extra = usage.build_record_fields() | extra
        stopped = usage is not None and usage.stopped is not None
        extra |= build_backoff_fields(before, missing_rows, stopped, self.env.budget)
        record = self.build_record(compute_data_version(frame), frame.height, missing_rows, **extra)
        self.env.lake.write(self.env.task_name, frame, record)
        return record

    def _note(self, name: str, partition: str | None, version: str) -> None:
        assert name in self.upstream, f"{self.asset} reads {name}, which the stage table does not declare for it"
        self.versions[format_artifact_name(name, partition)] = version

    def _check_complete(self) -> None:
        """Every declared input was read. A stage over all slices reads those that were made."""
        for name, keys in self._needed.items():
            for key in keys:
                node = format_artifact_name(name, key)
                assert node in self.versions, f"{self.asset} declares the input {node} and does not read it"
        rejected = format_artifact_name(MERGING_STAGE, REJECTED_ROWS)
        assert (rejected in self.versions) == self.stage.reads_rejected_rows

    def _refuse_blocked(self, record: ArtifactRecord) -> None:
        if failed := record.extra.get("blocked"):
            name = format_artifact_name(record.asset, record.partition)
            raise DistillError(
                f"{self.env.task_name}/{name} did not pass its blocking check {', '.join(failed)}. Look at the check "
                f"in the UI or with `distill status {self.env.task_name}`, fix the cause, and run it again."
            )


def build_held_out_table(folder: TaskFolder) -> pl.DataFrame:
    """Golden and dev rows by `id` and `text`, for decontamination."""
    rows = [(f"{name}:{row.id}", row.text) for name in ("golden", "dev") for row in getattr(folder, name)]
    return pl.DataFrame(rows, schema={"id": pl.String, "text": pl.String}, orient="row")


def sample_rows(frame: pl.DataFrame | pl.LazyFrame, columns: list[str], count: int = 5) -> SampleTable:
    """The first rows for people: these columns, and messages as the user's text. Long texts are cut."""
    rows = []
    for row in frame.lazy().head(count).collect().iter_rows(named=True):
        cells = {"text": get_user_text(row["messages"])} if row.get("messages") else {}
        rows.append({name: _shorten(cell) for name, cell in (cells | {c: row[c] for c in columns}).items()})
    return SampleTable(rows)


def _shorten(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, int | float | bool):
        return value
    text = str(value)
    return text if len(text) <= MAX_CELL_CHARS else text[: MAX_CELL_CHARS - 1] + "…"
