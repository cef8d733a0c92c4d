"""The sensors of one task: one observes the user's files, the other runs what a change requires."""

import contextlib
import json
import time
from pathlib import Path

import dagster as dg

from assets.task_graph import TaskGraph
from distill_dagster.core.errors import InputError
from distill_dagster.orchestration import find_slice_changes, find_student_changes
from distill_dagster.orchestration.tags import DATA_VERSION_TAG
from distill_dagster.pipeline.source_versions import iter_source_versions
from distill_dagster.pipeline.stage_table import get_slices_partitions_name, get_students_partitions_name
from distill_dagster.tasks import TaskFolder
from resources.storage import TaskFoldersResource

QUIET_S = 20
"""Seconds without a change before files are observed, so that ten edits in a row cause one refresh."""
INTERVAL_S = 30


def build_sensors(graph: TaskGraph) -> list[dg.SensorDefinition]:
    """Build both sensors of a task. They are on from the start only if asking the teacher is free."""
    conditions = dg.AutomationConditionSensorDefinition(
        name=f"{graph.identifier}_automation",
        target=dg.AssetSelection.groups(graph.name),
        default_status=graph.sensor_status,
        minimum_interval_seconds=INTERVAL_S,
        description="Runs what a change of content requires, from seed prompts to the filtered dataset."
        + graph.stopped,
    )
    return [_build_files_sensor(graph), conditions]


def _build_files_sensor(graph: TaskGraph) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{graph.identifier}_files",
        minimum_interval_seconds=INTERVAL_S,
        default_status=graph.sensor_status,
        description=(
            "Watches the task's files. Adds and removes slices as partitions and observes changed content, "
            f"when nothing has changed for {QUIET_S} s."
        ),
    )
    def _files(
        context: dg.SensorEvaluationContext, tasks: dg.ResourceParam[TaskFoldersResource]
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            folder = tasks.open(graph.name)
        except InputError as error:
            return dg.SkipReason(str(error)[:2000])
        if (age := abs(time.time() - get_last_change(folder.path, folder.accepted))) < QUIET_S:
            return dg.SkipReason(
                f"A file changed {age:.0f} s ago. Files are observed after {QUIET_S} s without a change."
            )
        return observe_changes(graph, folder, context.instance, context.cursor)

    return _files


def get_last_change(folder: Path, accepted: Path | None = None) -> float:
    """Return when a file or folder of the task last changed, in seconds since the epoch."""
    paths = [
        folder,
        *folder.glob("*"),
        *folder.glob("slices/*"),
        *folder.glob("templates/*"),
        *folder.glob("recorded/*"),
        *folder.glob("imagined/*"),
        *folder.glob("datasets/*"),
    ]
    if accepted is not None:
        paths += [accepted, *accepted.rglob("*")]  # also below imagined/ and recorded/
    times = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            times.append(path.lstat().st_mtime)
    return max(times)


def observe_changes(
    graph: TaskGraph, folder: TaskFolder, instance: dg.DagsterInstance, cursor: str | None
) -> dg.SensorResult | dg.SkipReason:
    """Observe everything that changed since the cursor. A malformed file is named and does not block the others."""
    before: dict[str, str] = json.loads(cursor) if cursor else {}
    new, removed = find_slice_changes(folder, instance)
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    for name, changes in (
        (get_slices_partitions_name(graph.name), (new, removed)),
        (get_students_partitions_name(graph.name), find_student_changes(folder, instance)),
    ):
        added, gone = changes
        requests += [dg.AddDynamicPartitionsRequest(name, added)] if added else []
        requests += [dg.DeleteDynamicPartitionsRequest(name, gone)] if gone else []
    now: dict[str, str] = {}
    events: list[dg.AssetObservation] = []
    observed: list[str] = []
    problems: list[str] = []
    for source, partition, version in iter_source_versions(folder, graph.students):
        key = f"{source}/{partition or ''}"
        if isinstance(version, InputError):
            problems.append(str(version))
            if key in before:
                now[key] = before[key]
            continue
        now[key] = version
        if before.get(key) != version:
            observed.append(f"{source}[{partition}]" if partition else source)
            tags = {DATA_VERSION_TAG: version}
            events.append(dg.AssetObservation(graph.key(source), partition=partition, tags=tags))
    if problems and not events and not requests:
        return dg.SkipReason("Malformed: " + "; ".join(sorted(set(problems)))[:2000])
    # A tick that starts no run shows this text instead of "empty result".
    notes = [f"new slices: {', '.join(new)}"] if new else []
    notes += [f"removed slices: {', '.join(removed)}"] if removed else []
    notes += [f"observed: {', '.join(observed)}"] if observed else []
    return dg.SensorResult(
        asset_events=events,
        dynamic_partitions_requests=requests,
        cursor=json.dumps(now, sort_keys=True),
        skip_reason="; ".join(notes)[:2000] if events or requests else "Nothing changed.",
    )
