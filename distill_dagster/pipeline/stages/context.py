"""What all stages share: where things are, reading with a note of what was read, and what a stage hands back."""

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
from distill_dagster.pipeline.check_catalogue import STAGE_CHECKS
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.stage_table import STAGES
from distill_dagster.tables.data_versions import compute_data_version
from distill_dagster.tables.lake import ArtifactRecord, Lake, format_artifact_name, merge_inputs, read_folder_record
from distill_dagster.tables.messages import get_user_text
from distill_dagster.tasks import TaskFolder
from distill_dagster.tasks.rows import collect_held_out_keys
from distill_dagster.teacher.completions.ledger import NO_CAP, Account
from distill_dagster.teacher.completions.store import CompletionStore
from distill_dagster.teacher.providers.client import Endpoint


@dataclass(frozen=True)
class StageContext:
    """The doors of a stage to the outside."""

    folder: TaskFolder
    lake: Lake
    store: CompletionStore
    models: Path
    reports: Path
    endpoint: Callable[[TeacherSpec], AbstractContextManager[Endpoint]]
    run_id: str = ""
    limits: ResourceLimits | None = None
    """Memory, threads and spill folder of what compares many rows."""
    campaign: str = ""
    """What a budget of one campaign covers: one command, backfill or refresh."""
    cap: BudgetSpec = NO_CAP
    """What the campaign itself may spend; of it and task.yaml's `budget` the lower counts."""

    @property
    def budget(self) -> BudgetSpec:
        return self.folder.task.budget.capped(self.cap)

    @property
    def task_name(self) -> str:
        return self.folder.name


@dataclass(frozen=True)
class Markdown:
    text: str


@dataclass(frozen=True)
class SampleTable:
    """A small table for people."""

    rows: list[dict[str, str | int | float | bool | None]]


DisplayValue = str | int | float | bool | Path | Markdown | SampleTable


@dataclass(frozen=True)
class StageResult:
    """What a stage made: its record, and what a person should see of it."""

    record: ArtifactRecord
    shown: dict[str, DisplayValue] = field(default_factory=dict)
    checks: list[CheckResult] = field(default_factory=list)


def build_blocked_fields(asset: str, checks: list[CheckResult]) -> dict[str, Any]:
    """What a record keeps of failed checks that nothing downstream may pass: their names and what they found."""
    blocking = {spec.name for spec in STAGE_CHECKS[asset] if spec.blocking}
    failed = [c for c in checks if not c.passed and c.name in blocking and c.severity == "error"]
    if not failed:
        return {}
    found = [f"{name} {value}" for check in failed for name, value in check.found.items() if value != ""]
    return {"blocked": [check.name for check in failed], "blocked_found": "; ".join(found)[:500]}


class StageInputs:
    """Reads a stage's inputs and notes the data version of each: exactly what was read is what is recorded."""

    def __init__(self, env: StageContext, asset: str, partition: str | None) -> None:
        self.env, self.asset, self.partition = env, asset, partition
        self.inputs: dict[str, str] = {}

    @property
    def account(self) -> Account:
        """What the ledger books the stage's teacher calls under."""
        purpose = STAGES[self.asset].purpose
        assert purpose is not None, f"{self.asset} asks no teacher"
        return Account(self.env.task_name, self.env.campaign or self.env.run_id, purpose, self.env.budget)

    def source(self, name: str, partition: str | None = None) -> None:
        """Note the version of a source, before its content is used: both come from the same cached parse."""
        self.inputs[format_artifact_name(name, partition)] = compute_source_version(self.env.folder, name, partition)

    def table(self, asset: str, schema: pl.Schema, partition: str | None = None) -> pl.DataFrame:
        frame, record = self.env.lake.read(self.env.task_name, asset, partition, schema)
        self._refuse_blocked(record)
        self.inputs[format_artifact_name(asset, partition)] = record.data_version
        return frame

    def last_good(
        self, asset: str, schema: pl.Schema, partition: str, folder: Path
    ) -> tuple[pl.LazyFrame, ArtifactRecord] | None:
        """The latest version of a slice's table that passed its checks, or None; `folder` holds on to it."""
        found = self.env.lake.scan_good(self.env.task_name, asset, partition, schema, folder)
        if found is not None:
            self.inputs[format_artifact_name(asset, partition)] = found[1].data_version
        return found

    def _refuse_blocked(self, record: ArtifactRecord) -> None:
        if failed := record.extra.get("blocked"):
            name = format_artifact_name(record.asset, record.partition)
            raise DistillError(
                f"{self.env.task_name}/{name} did not pass its blocking check {', '.join(failed)}. Look at the check "
                f"in the UI or with `distill status {self.env.task_name}`, mend its cause, and run it again."
            )

    def folder(self, asset: str, partition: str) -> Path:
        """The folder of an artifact that is not a table."""
        path = self.env.lake.folder(self.env.task_name, asset, partition)
        record = read_folder_record(path)
        if record is None:
            self.env.lake.read(self.env.task_name, asset, partition, pl.Schema({}))  # raises with a remedy
            raise AssertionError
        self.inputs[format_artifact_name(asset, partition)] = record.data_version
        return path

    def held_out(self) -> set[str]:
        self.source("golden_set")
        return collect_held_out_keys(self.env.folder.golden, self.env.folder.dev)

    def record(self, version: str, rows: int, missing_rows: int = 0, **extra: Any) -> ArtifactRecord:
        return ArtifactRecord(
            asset=self.asset,
            partition=self.partition,
            data_version=version,
            code_version=STAGES[self.asset].code_version,
            inputs=merge_inputs(self.inputs),
            rows=rows,
            missing_rows=missing_rows,
            extra=extra,
        )

    def write(
        self, frame: pl.DataFrame, checks: list[CheckResult], missing_rows: int = 0, **extra: Any
    ) -> ArtifactRecord:
        """Write the stage's table; a failed blocking check is kept in its record."""
        extra |= build_blocked_fields(self.asset, checks)
        record = self.record(compute_data_version(frame), frame.height, missing_rows, **extra)
        self.env.lake.write(self.env.task_name, frame, record)
        return record


def build_held_out_table(folder: TaskFolder) -> pl.DataFrame:
    """Golden and dev rows by `id` and `text`, for decontamination."""
    rows = [(f"{name}:{row.id}", row.text) for name in ("golden", "dev") for row in getattr(folder, name)]
    return pl.DataFrame(rows, schema={"id": pl.String, "text": pl.String}, orient="row")


def sample_rows(frame: pl.DataFrame | pl.LazyFrame, columns: list[str], count: int = 5) -> SampleTable:
    """The first rows for people: messages as their user text, long texts cut, no soft labels."""
    rows = []
    for row in frame.lazy().head(count).collect().iter_rows(named=True):
        shown = {"text": get_user_text(row["messages"])} if row.get("messages") else {}
        rows.append({k: _shorten(v) for k, v in (shown | {c: row[c] for c in columns}).items()})
    return SampleTable(rows)


def _shorten(value: Any) -> str | int | float | bool | None:
    if value is None or isinstance(value, int | float | bool):
        return value
    text = str(value)
    return text if len(text) <= 160 else text[:159] + "…"
