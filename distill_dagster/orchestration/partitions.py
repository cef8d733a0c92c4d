"""Keep Dagster in step with a task's files: slices as partitions, and observed data versions."""

from __future__ import annotations

from collections.abc import Iterable

import dagster as dg
from dagster._core.storage.partition_status_cache import AssetPartitionStatus

from distill_dagster.core.errors import InputError
from distill_dagster.orchestration.tags import DATA_VERSION_TAG
from distill_dagster.pipeline.backfill_selection import SLICE_STAGES
from distill_dagster.pipeline.source_versions import iter_source_versions
from distill_dagster.pipeline.stage_table import get_slices_partitions_name, get_students_partitions_name
from distill_dagster.tables.lake import Lake
from distill_dagster.tasks import TaskFolder


def find_slice_changes(folder: TaskFolder, instance: dg.DagsterInstance) -> tuple[list[str], list[str]]:
    """Return new slices and removed slices, compared with Dagster's partitions.

    Both are sorted: Dagster's partition ranges follow the order of insertion.
    """
    keys = set(folder.list_slice_keys())
    known = set(instance.get_dynamic_partitions(get_slices_partitions_name(folder.name)))
    return sorted(keys - known), sorted(known - keys)


def find_student_changes(
    folder: TaskFolder, instance: dg.DagsterInstance, students: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """Return new students and removed students, compared with Dagster's partitions.

    Only students that somebody asked for are partitions: the default student, those that were trained, and `students`.
    The UI would show a training as incomplete as long as any student of task.yaml is missing.
    """
    known = set(instance.get_dynamic_partitions(get_students_partitions_name(folder.name)))
    wanted = {folder.task.chosen_student, *students}
    return sorted(wanted - known), sorted(known - set(folder.task.students))


def find_trained_students(folder: TaskFolder, lake: Lake) -> list[str]:
    """Return the students that were trained before."""
    return [s for s in folder.task.students if lake.read_record(folder.name, "student_adapter", s) is not None]


def sync_students(folder: TaskFolder, instance: dg.DagsterInstance, students: Iterable[str]) -> None:
    """Add and remove partitions to match the students that are asked for, or were before."""
    name, (new, removed) = get_students_partitions_name(folder.name), find_student_changes(folder, instance, students)
    if new:
        instance.add_dynamic_partitions(name, new)
    for key in removed:
        instance.delete_dynamic_partition(name, key)


def sync_task(folder: TaskFolder, instance: dg.DagsterInstance, students: Iterable[str] = ()) -> None:
    """Add and remove partitions to match slices and students, and report an observation for each changed file."""
    sync_students(folder, instance, students)
    new, removed = find_slice_changes(folder, instance)
    if new:
        instance.add_dynamic_partitions(get_slices_partitions_name(folder.name), new)
    for key in removed:
        instance.delete_dynamic_partition(get_slices_partitions_name(folder.name), key)
    observed: dict[str, dict[str | None, str]] = {}
    for source, partition, version in iter_source_versions(folder, list(folder.task.students)):
        asset_key = dg.AssetKey([folder.name, source])
        if source not in observed:
            observed[source] = get_latest_versions(
                instance, asset_key, partition is not None, dg.DagsterEventType.ASSET_OBSERVATION
            )
        if not isinstance(version, InputError) and observed[source].get(partition) != version:
            tags = {DATA_VERSION_TAG: version}
            instance.report_runless_asset_event(dg.AssetObservation(asset_key, partition=partition, tags=tags))


def find_failed_slices(folder: TaskFolder, instance: dg.DagsterInstance) -> set[str]:
    """Return slices for which the last run of any of their assets failed."""
    slices = dg.DynamicPartitionsDefinition(name=get_slices_partitions_name(folder.name))
    keys = instance.get_dynamic_partitions(get_slices_partitions_name(folder.name))
    failed = set()
    for stage in SLICE_STAGES:
        statuses = instance.get_status_by_partition(dg.AssetKey([folder.name, stage]), keys, slices) or {}
        failed |= {key for key, status in statuses.items() if status == AssetPartitionStatus.FAILED}
    return failed


def get_latest_versions(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitioned: bool, kind: dg.DagsterEventType
) -> dict[str | None, str]:
    """Return the data version of an asset's latest event by partition, with one query."""
    if partitioned:
        latest_tags = instance.event_log_storage.get_latest_tags_by_partition(key, kind, [DATA_VERSION_TAG])
        return {
            partition: tags[DATA_VERSION_TAG] for partition, tags in latest_tags.items() if DATA_VERSION_TAG in tags
        }
    fetch = instance.fetch_observations
    if kind == dg.DagsterEventType.ASSET_MATERIALIZATION:
        fetch = instance.fetch_materializations
    latest = fetch(key, limit=1).records
    event = latest[0].asset_observation or latest[0].asset_materialization if latest else None
    return {None: version} if event and (version := (event.tags or {}).get(DATA_VERSION_TAG)) else {}
