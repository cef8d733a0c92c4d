"""The sensors of one task: one sees the user's edits, the other runs what they call for."""

import json
import time
from pathlib import Path

import dagster as dg

from assets.common import TaskGraph
from distill_dagster.core.errors import InputError
from distill_dagster.orchestration import find_slice_changes
from distill_dagster.orchestration.tags import DATA_VERSION_TAG
from distill_dagster.pipeline.source_versions import iter_source_versions
from distill_dagster.pipeline.stage_table import get_slices_partitions_name
from distill_dagster.tasks import TaskFolder
from resources.storage import TaskFoldersResource

QUIET_S = 20
"""Files that changed within so many seconds are looked at later: ten edits in a row make one refresh."""
INTERVAL_S = 30


def build_sensors(graph: TaskGraph) -> list[dg.SensorDefinition]:
    """Both sensors of a task. They run from the start only where asking the teacher is free."""
    conditions = dg.AutomationConditionSensorDefinition(
        name=f"{graph.identifier}_automation",
        target=dg.AssetSelection.groups(graph.name),
        default_status=graph.sensor_status,
        minimum_interval_seconds=INTERVAL_S,
        description="Runs what a change of content calls for, from seed prompts to the filtered dataset."
        + graph.stopped,
    )
    return [_build_files_sensor(graph), conditions]


def _build_files_sensor(graph: TaskGraph) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{graph.identifier}_files",
        minimum_interval_seconds=INTERVAL_S,
        default_status=graph.sensor_status,
        description=(
            "Sees the task's files: slices become partitions and leave again, and changed content is observed, "
            f"once nothing changed for {QUIET_S} s."
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
            return dg.SkipReason(f"A file changed {age:.0f} s ago; looked at after {QUIET_S} quiet seconds.")
        return observe_changes(graph, folder, context.instance, context.cursor)

    return _files


def get_last_change(folder: Path, accepted: Path | None = None) -> float:
    """When a file of the task, or one of its folders, last changed: seconds since the epoch."""
    places = [
        folder,
        *folder.glob("*"),
        *folder.glob("slices/*"),
        *folder.glob("templates/*"),
        *folder.glob("recorded/*"),
    ]
    if accepted is not None:
        places += [accepted, *accepted.glob("*")]
    return max(path.lstat().st_mtime for path in places if path.exists())


def observe_changes(
    graph: TaskGraph, folder: TaskFolder, instance: dg.DagsterInstance, cursor: str | None
) -> dg.SensorResult | dg.SkipReason:
    """Observations of all that changed since the cursor; a malformed file is named and holds up no other."""
    seen: dict[str, str] = json.loads(cursor) if cursor else {}
    name, (new, gone) = get_slices_partitions_name(graph.name), find_slice_changes(folder, instance)
    requests: list[dg.AddDynamicPartitionsRequest | dg.DeleteDynamicPartitionsRequest] = []
    if new:
        requests.append(dg.AddDynamicPartitionsRequest(name, new))
    if gone:
        requests.append(dg.DeleteDynamicPartitionsRequest(name, gone))
    now: dict[str, str] = {}
    events: list[dg.AssetObservation] = []
    places: list[str] = []
    problems: list[str] = []
    for source, partition, version in iter_source_versions(folder, graph.students):
        place = f"{source}/{partition or ''}"
        if isinstance(version, InputError):
            problems.append(str(version))
            if place in seen:
                now[place] = seen[place]
            continue
        now[place] = version
        if seen.get(place) != version:
            places.append(f"{source}[{partition}]" if partition else source)
            tags = {DATA_VERSION_TAG: version}
            events.append(dg.AssetObservation(graph.key(source), partition=partition, tags=tags))
    if problems and not events and not requests:
        return dg.SkipReason("Malformed: " + "; ".join(sorted(set(problems)))[:2000])
    # Shown with the tick, which starts no run itself; Dagster would call it an empty result.
    said = [f"new slices: {', '.join(new)}"] if new else []
    said += [f"slices gone: {', '.join(gone)}"] if gone else []
    said += [f"observed: {', '.join(places)}"] if places else []
    return dg.SensorResult(
        asset_events=events,
        dynamic_partitions_requests=requests,
        cursor=json.dumps(now, sort_keys=True),
        skip_reason="; ".join(said)[:2000] if events or requests else "Nothing changed.",
    )
