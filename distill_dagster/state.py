"""What is out of date, and why: what is, compared with what every artifact's record says it was made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill_dagster.graph import SOURCES, Stage, stages_of
from distill_dagster.lake import Lake, Record, node
from distill_dagster.sources import slices_are_labels, source_version
from distill_dagster.taskfiles import TaskFolder


@dataclass(frozen=True)
class Status:
    """One artifact. `why` names what changed; it is empty for a fresh one."""

    asset: str
    partition: str | None
    state: Literal["fresh", "stale", "missing", "waiting"]
    why: tuple[str, ...] = ()
    record: Record | None = None

    @property
    def name(self) -> str:
        return node(self.asset, self.partition)


class State:
    """The state of one task at one moment. Source files are read once."""

    def __init__(self, folder: TaskFolder, lake: Lake) -> None:
        self.folder, self.lake = folder, lake
        self.stages = stages_of(slices_are_labels(folder))
        self.slices = folder.slice_keys()
        self.students = list(folder.task.students)
        self._sources: dict[str, str] = {}

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
                found[node(name, key)] = self._version(name, key)
        return found

    def _version(self, name: str, key: str | None) -> str | None:
        if name not in SOURCES:
            record = self.lake.record(self.folder.name, name, key)
            return record.data_version if record else None
        if node(name, key) not in self._sources:
            self._sources[node(name, key)] = source_version(self.folder, name, key)
        return self._sources[node(name, key)]

    def status(self, asset: str, partition: str | None = None) -> Status:
        """`waiting`: an upstream artifact is missing. `stale`: what it was made from is not what is there now."""
        stage = self.stages[asset]
        record = self.lake.record(self.folder.name, asset, partition)
        now = self.inputs(stage, partition)
        absent = tuple(f"{name} is missing" for name, version in now.items() if version is None)
        if record is None:
            return Status(asset, partition, "waiting" if absent else "missing", absent or ("never made",), None)
        why = [
            f"{name} {'is missing' if now[name] is None else 'changed'}"
            for name in now
            if name in record.inputs and now[name] != record.inputs[name]
        ]
        why += [f"{name} is new" for name in now if name not in record.inputs]
        why += [f"{name} is gone" for name in record.inputs if name not in now]
        if record.code_version != stage.code_version:
            why.append(f"code version {record.code_version} became {stage.code_version}")
        if record.missing_rows:
            why.append(f"{record.missing_rows} rows have no answer yet")
        return Status(asset, partition, "stale" if why else "fresh", tuple(why), record)

    def all(self, students: list[str] | None = None, slices: list[str] | None = None) -> list[Status]:
        """Every artifact in topological order; only the named students and slices, where any are named."""
        chosen = {"slice": slices, "student": students}
        out = []
        for stage in self.stages.values():
            wanted = chosen.get(stage.partition or "")
            kept = [p for p in self.partitions(stage) if wanted is None or p in wanted]
            out += [self.status(stage.name, partition) for partition in kept]
        return out
