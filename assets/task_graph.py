"""The names of one task in Dagster: keys, partitions, and what is on from the start."""

import re
from dataclasses import dataclass

import dagster as dg

from distill_dagster.pipeline.stage_table import (
    SOURCES,
    Stage,
    get_slices_partitions_name,
    get_students_partitions_name,
)


@dataclass(frozen=True)
class TaskGraph:
    """The names of one task in Dagster, built when the code location loads. Assets read the files when they run."""

    name: str
    stages: dict[str, Stage]
    students: list[str]
    owners: list[str]
    free: bool
    """Asking the teacher costs nothing, so sensors and the schedule are on from the start."""
    assistants: tuple[str, ...] = ()
    """The students that teach another one."""

    @property
    def identifier(self) -> str:
        """The task name for jobs and sensors, which allow fewer characters."""
        return re.sub(r"[^A-Za-z0-9_]", "_", self.name)

    @property
    def observed_group(self) -> str:
        """The group of what is observed and not made: the user's files, and refreshes. It keeps the graph readable."""
        return f"{self.name}_observed"

    @property
    def sensor_status(self) -> dg.DefaultSensorStatus:
        return dg.DefaultSensorStatus.RUNNING if self.free else dg.DefaultSensorStatus.STOPPED

    @property
    def schedule_status(self) -> dg.DefaultScheduleStatus:
        return dg.DefaultScheduleStatus.RUNNING if self.free else dg.DefaultScheduleStatus.STOPPED

    @property
    def stopped(self) -> str:
        """The note for descriptions of sensors that are off at first."""
        return "" if self.free else " Off until you start it, because the teacher costs money."

    @property
    def slices_def(self) -> dg.DynamicPartitionsDefinition:
        return dg.DynamicPartitionsDefinition(name=get_slices_partitions_name(self.name))

    @property
    def students_def(self) -> dg.DynamicPartitionsDefinition:
        return dg.DynamicPartitionsDefinition(name=get_students_partitions_name(self.name))

    @property
    def assistants_def(self) -> dg.StaticPartitionsDefinition:
        """Only some students are assistants. With the partitions of all students, the UI would miss the others."""
        return dg.StaticPartitionsDefinition(list(self.assistants))

    def has_partition(self, partition: str | None) -> bool:
        """Whether a stage of the task has this kind of partitions."""
        return any(stage.partition == partition for stage in self.stages.values())

    def has_source(self, source: str) -> bool:
        """Whether a stage of the task reads this source."""
        return any(source in stage.upstream for stage in self.stages.values())

    def partitions_def(self, partition: str | None) -> dg.PartitionsDefinition | None:
        if partition == "slice":
            return self.slices_def
        if partition == "assistant":
            return self.assistants_def
        return self.students_def if partition == "student" else None

    def key(self, asset: str) -> dg.AssetKey:
        """The asset key of a stage or source of this task."""
        return dg.AssetKey([self.name, asset])

    def build_dep(self, stage: Stage, upstream: str) -> dg.AssetDep:
        """Build a dependency: on the same partition, or on all partitions if the two are partitioned differently."""
        other = (SOURCES.get(upstream) or self.stages[upstream]).partition
        if other is not None and other != stage.partition:
            return dg.AssetDep(self.key(upstream), partition_mapping=dg.AllPartitionMapping())
        return dg.AssetDep(self.key(upstream))
