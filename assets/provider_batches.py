"""The sensor that collects a task's provider batches, so that no run has to wait for them."""

import dagster as dg

from assets.task_graph import TaskGraph
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun
from distill_dagster.teacher.completions.batches import CollectedBatch, collect_batches
from resources.storage import CompletionStoreResource, TaskFoldersResource
from resources.teacher import TeacherResource

INTERVAL_S = 60
_RUN_WITH = {"teacher_completions": ["teacher_completions", "scored_completions"]}
"""The assets to run when a batch of this asset ends. Other assets run alone."""


def build_batches_sensor(graph: TaskGraph) -> dg.SensorDefinition:
    """Build the sensor, for a task with a teacher in batch mode. It submits nothing, but the runs it starts may."""

    @dg.sensor(
        name=f"{graph.identifier}_batches",
        asset_selection=dg.AssetSelection.groups(graph.name),
        minimum_interval_seconds=INTERVAL_S,
        default_status=graph.sensor_status,
        description="Checks the provider's batches. When one has ended, stores its answers and runs what asked for "
        f"them.{graph.stopped}",
    )
    def _batches(
        context: dg.SensorEvaluationContext,
        tasks: dg.ResourceParam[TaskFoldersResource],
        store: dg.ResourceParam[CompletionStoreResource],
        teacher: dg.ResourceParam[TeacherResource],
    ) -> dg.SensorResult | dg.SkipReason:
        try:
            collected, open_count = list[CollectedBatch](), 0
            specs = [spec for spec in tasks.open(graph.name).task.teacher_specs if spec.mode == "batch"]
            with store.open() as completion_store:
                for spec in specs:
                    with teacher.open_endpoint(spec) as endpoint:
                        ended, still_open = collect_batches(endpoint, spec, completion_store, graph.name)
                    collected += ended
                    open_count += len(still_open)
        except DistillError as error:
            return dg.SkipReason(str(error)[:2000])
        for batch in collected:
            context.log.info(str(batch))
        if not collected:
            return dg.SkipReason(
                f"{count_noun(open_count, 'batch is', 'batches are')} open." if open_count else "No batch is open."
            )
        return dg.SensorResult(run_requests=[_build_run_request(graph, batch) for batch in collected])

    return _batches


def _build_run_request(graph: TaskGraph, batch: CollectedBatch) -> dg.RunRequest:
    asset, _, partition = batch.submission.origin.removeprefix(f"{graph.name}/").partition("[")
    return dg.RunRequest(
        run_key=batch.submission.submission,
        partition_key=partition.removesuffix("]") or None,
        asset_selection=[graph.key(name) for name in _RUN_WITH.get(asset, [asset])],
    )
