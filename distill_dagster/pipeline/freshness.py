"""What is out of date, and why: what is, compared with what every artifact's record says it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from distill_dagster.core.errors import InputError
from distill_dagster.pipeline.source_versions import compute_source_version, list_features
from distill_dagster.pipeline.stage_table import MERGING_STAGE, REJECTED_ROWS, SOURCES, Stage, list_stages
from distill_dagster.tables.lake import ArtifactRecord, Lake, format_artifact_name
from distill_dagster.tasks import TaskFolder

StateName = Literal["fresh", "stale", "missing", "waiting", "malformed"]


@dataclass(frozen=True)
class ArtifactStatus:
    """One artifact. `why` names what changed, or what is wrong in its file; it is empty for a fresh one."""

    asset: str
    partition: str | None
    state: StateName
    why: tuple[str, ...] = ()
    record: ArtifactRecord | None = None

    @property
    def name(self) -> str:
        return format_artifact_name(self.asset, self.partition)


class TaskState:
    """The state of one task. Files and records are read once, and again after `forget`."""

    def __init__(self, folder: TaskFolder, lake: Lake) -> None:
        self.folder, self.lake = folder, lake
        self.stages = list_stages(list_features(folder))
        self.slices = folder.list_slice_keys()
        self.students = list(folder.task.students)
        self._sources: dict[str, str | None] = {}
        self._malformed: dict[str, InputError] = {}
        self._records: dict[str, ArtifactRecord | None] = {}
        self._statuses: dict[str, ArtifactStatus] = {}

    def partitions(self, stage: Stage) -> list[str | None]:
        if stage.partition is None:
            return [None]
        return list(self.slices if stage.partition == "slice" else self.students)

    def inputs(self, stage: Stage, partition: str | None) -> dict[str, str | None]:
        """Upstream nodes with their current data versions; None where one was never made."""
        found: dict[str, str | None] = {}
        for name in stage.upstream:
            upstream = SOURCES.get(name) or self.stages[name]
            if upstream.partition is None:
                keys: list[str | None] = [None]
            elif upstream.partition == stage.partition:
                keys = [partition]
            else:
                keys = list(self.slices)
            for key in keys:
                found[format_artifact_name(name, key)] = self._version(name, key, good=stage.name == MERGING_STAGE)
        if stage.reads_rejected_rows:
            rejected = self.lake.read_record(self.folder.name, MERGING_STAGE, REJECTED_ROWS)
            found[format_artifact_name(MERGING_STAGE, REJECTED_ROWS)] = rejected.data_version if rejected else None
        return found

    def record(self, asset: str, partition: str | None) -> ArtifactRecord | None:
        """The latest record of an artifact, whether it passed its checks or not."""
        name = format_artifact_name(asset, partition)
        if name not in self._records:
            self._records[name] = self.lake.read_record(self.folder.name, asset, partition)
        return self._records[name]

    def _version(self, name: str, key: str | None, good: bool) -> str | None:
        if name not in SOURCES:
            record = self.record(name, key)
            if good and key is not None and record is not None and record.extra.get("blocked"):
                record = self.lake.read_good_record(self.folder.name, name, key)
            return record.data_version if record else None
        where = format_artifact_name(name, key)
        if where not in self._sources:
            try:
                self._sources[where] = compute_source_version(self.folder, name, key)
            except InputError as error:
                if key is None:
                    raise
                # One malformed slice or student holds up no other; what was made from it before stays.
                self._sources[where], self._malformed[where] = None, error
        return self._sources[where]

    def forget(self, made: Iterable[tuple[str, str | None]]) -> None:
        """Read anew what hangs on artifacts that were just made, or tried."""
        for asset, partition in made:
            self._records.pop(format_artifact_name(asset, partition), None)
            for source in self.stages[asset].upstream:
                if source in SOURCES:
                    self._sources.pop(format_artifact_name(source, partition), None)
            if partition is None:
                self._statuses.clear()
            # Of other partitions nothing changed but what all of them flow into.
            self._statuses = {
                name: s for name, s in self._statuses.items() if s.partition not in (partition, None, *self.students)
            }

    def status(self, asset: str, partition: str | None = None) -> ArtifactStatus:
        """`waiting`: an upstream artifact is missing. `stale`: what it was made from is not what is there now."""
        name = format_artifact_name(asset, partition)
        if name not in self._statuses:
            self._statuses[name] = self._status(asset, partition)
        return self._statuses[name]

    def _status(self, asset: str, partition: str | None) -> ArtifactStatus:
        stage = self.stages[asset]
        record = self.record(asset, partition)
        now = self.inputs(stage, partition)
        if wrong := [self._malformed[name] for name in now if name in self._malformed]:
            return ArtifactStatus(
                asset, partition, "malformed", tuple(str(p) for e in wrong for p in e.problems), record
            )
        absent = tuple(f"{name} is missing" for name, version in now.items() if version is None)
        if record is None:
            # The dataset goes without slices that were never made, as long as there is one.
            waits = absent and not (asset == MERGING_STAGE and self._only_some_slices(now))
            return ArtifactStatus(asset, partition, "waiting" if waits else "missing", absent or ("never made",), None)
        why = [
            f"{name} {'is missing' if now[name] is None else 'changed'}"
            for name in now
            if name in record.inputs and now[name] != record.inputs[name]
        ]
        why += [f"{name} is new" for name in now if name not in record.inputs and now[name] is not None]
        why += [f"{name} is gone" for name in record.inputs if name not in now]
        if record.code_version != stage.code_version:
            why.append(f"code version {record.code_version} became {stage.code_version}")
        if record.missing_rows:
            why.append(f"{record.missing_rows} rows have no answer yet")
        return ArtifactStatus(asset, partition, "stale" if why else "fresh", tuple(why), record)

    @staticmethod
    def _only_some_slices(now: dict[str, str | None]) -> bool:
        sliced = [version for name, version in now.items() if name.endswith("]")]
        rest = [version for name, version in now.items() if not name.endswith("]")]
        return None not in rest and any(version is not None for version in sliced)

    def all(self, students: list[str] | None = None, slices: list[str] | None = None) -> list[ArtifactStatus]:
        """Every artifact in topological order; only the named students and slices, where any are named."""
        chosen = {"slice": slices, "student": students}
        out = []
        for stage in self.stages.values():
            wanted = chosen.get(stage.partition or "")
            kept = [p for p in self.partitions(stage) if wanted is None or p in wanted]
            out += [self.status(stage.name, partition) for partition in kept]
        return out
