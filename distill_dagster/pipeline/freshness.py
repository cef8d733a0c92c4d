"""What is out of date and why: compares the inputs in each artifact's record with the current inputs."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

from distill_dagster.core.errors import InputError
from distill_dagster.core.formatting import count_noun
from distill_dagster.pipeline.input_partitions import list_input_partitions, list_stage_partitions
from distill_dagster.pipeline.source_versions import compute_source_version, list_features
from distill_dagster.pipeline.stage_table import MERGING_STAGE, REJECTED_ROWS, SOURCES, Stage, list_stages
from distill_dagster.tables.lake import ArtifactRecord, Lake, format_artifact_name
from distill_dagster.tasks import TaskFolder

StateName = Literal["fresh", "stale", "missing", "waiting", "malformed"]


@dataclass(frozen=True)
class ArtifactStatus:
    """The state of one artifact. `why` names what changed or what is wrong; it is empty if the artifact is fresh.

    `missing`: never made, and can be made. `waiting`: never made, and an input is missing. `stale`: an input, or the
    code version, is another than the one it was made from, or rows are missing. `malformed`: a file of the user is.
    """

    asset: str
    partition: str | None
    state: StateName
    why: tuple[str, ...] = ()
    record: ArtifactRecord | None = None

    @property
    def name(self) -> str:
        """The artifact name, `asset` or `asset[partition]`."""
        return format_artifact_name(self.asset, self.partition)


class TaskState:
    """The state of one task. It reads files and records once, and again after `forget`."""

    def __init__(self, folder: TaskFolder, lake: Lake) -> None:
        self.folder, self.lake = folder, lake
        self.stages = list_stages(list_features(folder))
        self.slices = folder.list_slice_keys()
        self.students = list(folder.task.students)
        self._sources: dict[str, str | None] = {}
        self._malformed: dict[str, InputError] = {}
        self._records: dict[str, ArtifactRecord | None] = {}
        self._is_listed = False
        self._statuses: dict[str, ArtifactStatus] = {}

    def list_partitions(self, stage: Stage, students: Collection[str] | None = None) -> list[str | None]:
        """The partitions of a stage, a single None for a stage without; only what these students need, or all."""
        return list_stage_partitions(self.folder.task, stage, self.slices, students)

    def find_inputs(self, stage: Stage, partition: str | None) -> dict[str, str | None]:
        """The current data version of each input by artifact name; None for one that was never made."""
        inputs: dict[str, str | None] = {}
        read = list_input_partitions(self.folder.task, stage, stage.upstream, partition, self.slices)
        for name, keys in read.items():
            for key in keys:
                version = self._find_version(name, key, good=stage.merges_slices)
                inputs[format_artifact_name(name, key)] = version
        if stage.reads_rejected_rows:
            rejected = self.lake.read_record(self.folder.name, MERGING_STAGE, REJECTED_ROWS)
            inputs[format_artifact_name(MERGING_STAGE, REJECTED_ROWS)] = rejected.data_version if rejected else None
        return inputs

    def read_record(self, asset: str, partition: str | None) -> ArtifactRecord | None:
        """The latest record of an artifact, whether it passed its checks or not."""
        name = format_artifact_name(asset, partition)
        if not self._is_listed:
            self._list_records()
        if name not in self._records:
            self._records[name] = self.lake.read_record(self.folder.name, asset, partition)
        return self._records[name]

    def _list_records(self) -> None:
        """Read the records of all artifacts at once, if the lake can."""
        self._is_listed = True
        found = self.lake.list_records(self.folder.name)
        if found is not None:
            for stage in self.stages.values():
                for key in self.list_partitions(stage):
                    name = format_artifact_name(stage.name, key)
                    self._records[name] = found.get(name)

    def _find_version(self, name: str, key: str | None, good: bool) -> str | None:
        if name not in SOURCES:
            record = self.read_record(name, key)
            # A stage that merges slices takes the last good rows of each.
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
                # One malformed slice or student does not stop the others. What was made from it before stays.
                self._sources[where], self._malformed[where] = None, error
        return self._sources[where]

    def forget(self, artifacts: Iterable[tuple[str, str | None]]) -> None:
        """Forget everything that depends on artifacts that were just made or tried, by asset and partition."""
        for asset, partition in artifacts:
            self._records.pop(format_artifact_name(asset, partition), None)
            for source in self.stages[asset].upstream:
                if source in SOURCES:
                    self._sources.pop(format_artifact_name(source, partition), None)
            if partition is None:
                self._statuses.clear()
            # In other partitions nothing changes, except for the stages that merge all of them.
            self._statuses = {
                name: s for name, s in self._statuses.items() if s.partition not in (partition, None, *self.students)
            }

    def get_status(self, asset: str, partition: str | None = None) -> ArtifactStatus:
        """The status of one artifact."""
        name = format_artifact_name(asset, partition)
        if name not in self._statuses:
            self._statuses[name] = self._find_status(asset, partition)
        return self._statuses[name]

    def _find_status(self, asset: str, partition: str | None) -> ArtifactStatus:
        stage = self.stages[asset]
        record = self.read_record(asset, partition)
        now = self.find_inputs(stage, partition)
        if errors := [self._malformed[name] for name in now if name in self._malformed]:
            problems = tuple(str(problem) for error in errors for problem in error.problems)
            return ArtifactStatus(asset, partition, "malformed", problems, record)
        absent = tuple(f"{name} is missing" for name, version in now.items() if version is None)
        if record is None:
            # A stage that merges slices needs one; it can be made without those that were never made.
            waits = absent and not (stage.merges_slices and self._lacks_only_slices(now))
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
            why.append(f"{count_noun(record.missing_rows, 'row has', 'rows have')} no answer yet")
        return ArtifactStatus(asset, partition, "stale" if why else "fresh", tuple(why), record)

    @staticmethod
    def _lacks_only_slices(now: dict[str, str | None]) -> bool:
        """Whether no input is missing but slices, and at least one slice is there."""
        sliced = [version for name, version in now.items() if name.endswith("]")]
        rest = [version for name, version in now.items() if not name.endswith("]")]
        return None not in rest and any(version is not None for version in sliced)

    def list_used_students(self) -> list[str]:
        """The default student, and those of which anything was made. The others wait until somebody asks for them."""
        stages = [name for name, stage in self.stages.items() if stage.partition == "student"]
        default = self.folder.task.chosen_student
        return [s for s in self.students if s == default or any(self.read_record(name, s) for name in stages)]

    def list_statuses(
        self, students: list[str] | None = None, slices: list[str] | None = None, explicit: bool = False
    ) -> list[ArtifactStatus]:
        """The status of every artifact in topological order, or of these slices and what these students need.

        Args:
            explicit: also those that only a command of their own makes, such as a release.
        """
        statuses, chosen = [], set(slices) if slices is not None else None
        for stage in self.stages.values():
            if stage.is_explicit and not explicit:
                continue
            wanted = chosen if stage.partition == "slice" else None
            partitions = [key for key in self.list_partitions(stage, students) if wanted is None or key in wanted]
            statuses += [self.get_status(stage.name, partition) for partition in partitions]
        return statuses
