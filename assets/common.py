"""What all assets of a task share: names, partitions, and the step from a stage function to an asset."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import polars as pl

from assets.conditions import get_condition
from assets.range_runs import run_each_slice
from distill_dagster.core import progress, redaction
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.orchestration.tags import BACKFILL_TAG, CAMPAIGN_TAG, read_budget_tags
from distill_dagster.pipeline.check_catalogue import STAGE_CHECKS
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.stage_table import ALL_SOURCES, OPTIONAL_SOURCES, Stage, get_slices_partitions_name
from distill_dagster.pipeline.stages.context import DisplayValue, Markdown, SampleTable, StageContext, StageResult
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.completions.batches import BatchPendingError
from resources.storage import CompletionStoreResource, LakeResource, ModelFolderResource, TaskFoldersResource
from resources.teacher import TeacherResource

# Observable sources and check partitions are marked beta or preview; versions are pinned, and a user cannot act on it.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

REQUIRED = {"tasks", "lake", "store", "models", "teacher"}
StageFunction = Callable[[StageContext, str | None], StageResult]


@dataclass(frozen=True)
class TaskGraph:
    """The names of one task in Dagster. Built from the outline of its files; the assets read them anew."""

    name: str
    stages: dict[str, Stage]
    students: list[str]
    owners: list[str]
    free: bool
    """Asking the teacher costs nothing: only then does anything ask it by itself from the start."""
    written: bool = False
    """Answers are written, with reasoning or without labels: few-shot examples have columns for them."""

    @property
    def identifier(self) -> str:
        """The name for jobs and sensors, which know fewer characters."""
        return re.sub(r"[^A-Za-z0-9_]", "_", self.name)

    @property
    def sensor_status(self) -> dg.DefaultSensorStatus:
        return dg.DefaultSensorStatus.RUNNING if self.free else dg.DefaultSensorStatus.STOPPED

    @property
    def schedule_status(self) -> dg.DefaultScheduleStatus:
        return dg.DefaultScheduleStatus.RUNNING if self.free else dg.DefaultScheduleStatus.STOPPED

    @property
    def stopped(self) -> str:
        """What a description adds where something is stopped at first."""
        return "" if self.free else " Stopped until you start it: the teacher costs money."

    @property
    def slices_def(self) -> dg.DynamicPartitionsDefinition:
        return dg.DynamicPartitionsDefinition(name=get_slices_partitions_name(self.name))

    def has(self, source: str) -> bool:
        """Whether a stage of the task reads this source."""
        return any(source in stage.upstream for stage in self.stages.values())

    def partitions_def(self, partition: str | None) -> dg.PartitionsDefinition | None:
        if partition == "slice":
            return self.slices_def
        return dg.StaticPartitionsDefinition(self.students) if partition == "student" else None

    def key(self, asset: str) -> dg.AssetKey:
        return dg.AssetKey([self.name, asset])

    def dep(self, stage: Stage, upstream: str) -> dg.AssetDep:
        """A dependency: same partition to same partition, else every partition of the upstream asset."""
        other = (ALL_SOURCES.get(upstream) or self.stages[upstream]).partition
        if other is not None and other != stage.partition:
            return dg.AssetDep(self.key(upstream), partition_mapping=dg.AllPartitionMapping())
        return dg.AssetDep(self.key(upstream))


def get_campaign(run: dg.DagsterRun) -> str:
    """The scope of a budget: all runs of a backfill, of a command or of a refresh, and a run with its retries."""
    return run.tags.get(BACKFILL_TAG) or run.tags.get(CAMPAIGN_TAG) or run.root_run_id or run.run_id


@contextmanager
def open_stage_context(context: dg.AssetExecutionContext, task: str) -> Iterator[StageContext]:
    """The stage environment from the run's resources."""
    resources = context.resources
    tasks: TaskFoldersResource = resources.tasks
    lake: LakeResource = resources.lake
    models: ModelFolderResource = resources.models
    teacher: TeacherResource = resources.teacher
    store_resource: CompletionStoreResource = resources.store
    with store_resource.open() as store:
        yield StageContext(
            folder=tasks.open(task),
            lake=lake.lake(),
            store=store,
            models=Path(models.path),
            reports=Path(lake.reports),
            endpoint=teacher.endpoint,
            run_id=context.run.run_id,
            limits=lake.limits(),
            campaign=get_campaign(context.run),
            cap=read_budget_tags(context.run.tags),
        )


def to_failure(error: DistillError) -> dg.Failure:
    """What Dagster keeps of an error of the user: its message, which no retry mends, without any secret."""
    return dg.Failure(description=redaction.redact(str(error)), allow_retries=False)


def to_check_result(key: dg.AssetKey, check: CheckResult) -> dg.AssetCheckResult:
    severity = dg.AssetCheckSeverity.WARN if check.severity == "warning" else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(
        asset_key=key, check_name=check.name, passed=check.passed, severity=severity, metadata=check.found
    )


def build_stage_asset(
    graph: TaskGraph,
    name: str,
    make: StageFunction,
    *,
    schema: pl.Schema | None = None,
    lineage: Mapping[str, Sequence[tuple[str, str]]] | None = None,
    pool: str | None = None,
) -> dg.AssetsDefinition:
    """One asset of the graph.

    Args:
        make: the stage function; a `DistillError` of it fails the step with its message and is not retried.
        schema: the columns that the UI shows; `lineage` maps a column to (upstream asset, column) pairs.
        pool: the concurrency pool: `teacher` or `training`.

    The checks of the stage run in the same step, on what was just written; each partition has its own results.
    """
    stage = graph.stages[name]
    code = dg.LocalFileCodeReference(
        file_path=make.__code__.co_filename, line_number=make.__code__.co_firstlineno, label=make.__name__
    )
    metadata: dict[str, dg.CodeReferencesMetadataValue | dg.TableSchema | dg.TableColumnLineage] = {
        "dagster/code_references": dg.CodeReferencesMetadataValue(code_references=[code])
    }
    if schema is not None:
        columns = [dg.TableColumn(column, str(dtype)) for column, dtype in schema.items()]
        metadata["dagster/column_schema"] = dg.TableSchema(columns=columns)
    if lineage:
        metadata["dagster/column_lineage"] = dg.TableColumnLineage(
            {
                column: [dg.TableColumnDep(asset_key=graph.key(asset), column_name=other) for asset, other in sources]
                for column, sources in lineage.items()
            }
        )

    sliced = stage.partition == "slice"
    may_be_left = sliced or pool == "teacher"  # for its batches; or a run of many slices makes its tables, see batch.py
    declared = {check.name for check in STAGE_CHECKS.get(name, ())}
    spec = dg.AssetSpec(
        graph.key(name),
        deps=[graph.dep(stage, upstream) for upstream in stage.upstream],
        partitions_def=graph.partitions_def(stage.partition),
        group_name=graph.name,
        kinds=set(stage.kinds),
        owners=graph.owners,
        description=stage.description,
        code_version=stage.code_version,
        metadata=metadata,
        automation_condition=get_condition(name, graph.key),
        skippable=may_be_left,
    )

    @dg.multi_asset(
        name=graph.key(name).to_python_identifier(),
        specs=[spec],
        can_subset=may_be_left,  # otherwise its checks would have to be reported all the same
        backfill_policy=dg.BackfillPolicy.single_run() if sliced else None,
        required_resource_keys=REQUIRED,
        check_specs=[
            dg.AssetCheckSpec(
                name=check.name,
                asset=graph.key(name),
                description=check.description,
                blocking=check.blocking,
                partitions_def=graph.partitions_def(stage.partition),
            )
            for check in STAGE_CHECKS.get(name, ())
        ],
        pool=pool,
    )
    def _asset(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult | dg.AssetCheckResult]:
        if sliced and not context.has_partition_key:  # a range, be it of one slice
            run_each_slice(context, graph.name)
            return
        partition = context.partition_key if context.has_partition_key else None
        try:
            with (
                open_stage_context(context, graph.name) as env,
                progress.add_progress_listener(_log_each_tenth(context.log.info)),
            ):
                made = make(env, partition)
        except BatchPendingError as error:  # nothing is wrong: it is left out of this run, and so is what needs it
            why = redaction.redact(str(error))
            context.log.info(why)
            context.log_event(dg.AssetObservation(graph.key(name), description=why, partition=partition))
            return
        except DistillError as error:
            # A check that failed before anything was made is shown as failed, and not only as an error of the run.
            yield from (to_check_result(graph.key(name), check) for check in error.checks if check.name in declared)
            raise to_failure(error) from (None if redaction.redact_traceback(error) else error)
        except Exception as error:
            if clean := redaction.redact_traceback(error):
                raise RuntimeError(clean) from None
            raise
        yield dg.MaterializeResult(
            asset_key=graph.key(name),
            data_version=dg.DataVersion(made.record.data_version),
            metadata={name: to_metadata_value(value) for name, value in made.shown.items()}
            | {"dagster/row_count": made.record.rows},
            check_results=[to_check_result(graph.key(name), check) for check in made.checks],
        )

    return _asset


def _log_each_tenth(log: Callable[[str], None]) -> progress.ProgressListener:
    """Write to the run's log at each tenth of the work, not at each step."""
    last: dict[str, int] = {}

    def listen(what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(total, 1)
        if last.get(what) != tenth:
            last[what] = tenth
            log(f"{what}: {done} of {total}")

    return listen


def to_metadata_value(value: DisplayValue) -> dg.MetadataValue:
    if isinstance(value, Markdown):
        return dg.MetadataValue.md(value.text)
    if isinstance(value, SampleTable):
        if not value.rows:
            return dg.MetadataValue.text("none")
        schema = dg.TableSchema(columns=[dg.TableColumn(name) for name in value.rows[0]])
        return dg.MetadataValue.table([dg.TableRecord(dict(row)) for row in value.rows], schema=schema)
    if isinstance(value, bool):
        return dg.MetadataValue.bool(value)
    if isinstance(value, int):
        return dg.MetadataValue.int(value)
    if isinstance(value, float):
        return dg.MetadataValue.float(value)
    return dg.MetadataValue.text(value) if isinstance(value, str) else dg.MetadataValue.path(value)


def build_source_assets(graph: TaskGraph) -> list[dg.SourceAsset]:
    """The user's files as observable assets: observing them reads and hashes, and runs nothing else."""
    return [_build_source_asset(graph, name) for name in ALL_SOURCES if name not in OPTIONAL_SOURCES or graph.has(name)]


def _build_source_asset(graph: TaskGraph, name: str) -> dg.SourceAsset:
    source = ALL_SOURCES[name]
    partitions = graph.partitions_def(source.partition)

    @dg.observable_source_asset(
        key=graph.key(name),
        group_name=graph.name,
        description=source.description,
        partitions_def=partitions,
        required_resource_keys={"tasks"},
    )
    def _observe(context) -> dg.DataVersion | dg.DataVersionsByPartition:  # type: ignore[no-untyped-def]
        folder: TaskFolder = context.resources.tasks.open(graph.name)
        try:
            if source.partition is None:
                return dg.DataVersion(compute_source_version(folder, name))
            keys = folder.slice_keys() if source.partition == "slice" else list(folder.task.students)
            return dg.DataVersionsByPartition({key: compute_source_version(folder, name, key) for key in keys})
        except DistillError as error:
            raise to_failure(error) from None

    return _observe
