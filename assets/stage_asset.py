"""Turn stage functions into assets: names, partitions, checks, metadata and errors."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import polars as pl

from assets.conditions import get_condition
from assets.range_runs import run_each_slice
from assets.task_graph import TaskGraph
from distill_dagster.core import progress, redaction
from distill_dagster.core.checks import CheckResult
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import format_clock
from distill_dagster.core.paths import build_report_url
from distill_dagster.orchestration.tags import BACKFILL_TAG, CAMPAIGN_TAG, JOB_BACKFILL_TAG, read_budget_tags
from distill_dagster.pipeline.check_catalogue import STAGE_CHECKS
from distill_dagster.pipeline.source_versions import compute_source_version
from distill_dagster.pipeline.stage_table import SOURCES
from distill_dagster.pipeline.stages.context import DisplayValue, Markdown, SampleTable, StageContext, StageResult
from distill_dagster.tables.lake import format_artifact_name
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.providers.attempts import PendingError
from resources.storage import CompletionStoreResource, LakeResource, ModelFolderResource, TaskFoldersResource
from resources.teacher import TeacherResource
from resources.workers import WorkersResource

# Observable sources and check partitions are beta or preview in Dagster. Versions are pinned: users need no warning.
warnings.filterwarnings("ignore", category=dg.BetaWarning)
warnings.filterwarnings("ignore", category=dg.PreviewWarning)

REQUIRED = {"tasks", "lake", "store", "models", "teacher", "workers"}
LOG_INTERVAL_S = 300.0
"""Seconds after which the log of a run says again how far some work is."""
StageFunction = Callable[[StageContext, str | None], StageResult]


def get_campaign(run: dg.DagsterRun) -> str:
    """Return the campaign of a run: all runs of a backfill, command or refresh, or a run with its retries."""
    tags = (run.tags.get(name) for name in (BACKFILL_TAG, JOB_BACKFILL_TAG, CAMPAIGN_TAG))
    return next(filter(None, tags), None) or run.root_run_id or run.run_id


@contextmanager
def open_stage_context(context: dg.AssetExecutionContext, task: str) -> Iterator[StageContext]:
    """Open what a stage needs from the run's resources."""
    resources = context.resources
    tasks: TaskFoldersResource = resources.tasks
    lake: LakeResource = resources.lake
    models: ModelFolderResource = resources.models
    teacher: TeacherResource = resources.teacher
    store_resource: CompletionStoreResource = resources.store
    workers: WorkersResource = resources.workers
    with store_resource.open() as store:
        yield StageContext(
            folder=tasks.open(task),
            lake=lake.open_lake(),
            store=store,
            models=Path(models.path),
            reports=Path(lake.reports),
            endpoint=teacher.open_endpoint,
            run_id=context.run.run_id,
            limits=lake.build_limits(),
            campaign=get_campaign(context.run),
            cap=read_budget_tags(context.run.tags),
            training=Path(lake.training),
            releases=Path(lake.releases),
            request_log=tasks.get_log_folder(task),
            workers=workers.get_workers(),
            launch_ranks=workers.get_launcher(),
        )


def to_failure(error: DistillError) -> dg.Failure:
    """Convert a user error: its message without secrets, and no retries, since a retry cannot fix it."""
    return dg.Failure(description=redaction.redact(str(error)), allow_retries=False)


def to_check_result(key: dg.AssetKey, check: CheckResult) -> dg.AssetCheckResult:
    """Convert the result of a check to Dagster's."""
    severity = dg.AssetCheckSeverity.WARN if check.severity == "warning" else dg.AssetCheckSeverity.ERROR
    return dg.AssetCheckResult(
        asset_key=key, check_name=check.name, passed=check.passed, severity=severity, metadata=check.details
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
    """Build one asset from a stage function.

    The checks of the stage run in the same step, on the table just written. Each partition has its own results.

    Args:
        make: The stage function. A `DistillError` fails the step with its message and is not retried.
        schema: The columns that the UI shows.
        lineage: Maps a column to pairs of (upstream asset, column).
        pool: The concurrency pool, `teacher` or `training`.
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

    is_sliced = stage.partition == "slice"
    # A run skips the asset if its batch has not ended, or if inner runs make its partitions (see range_runs.py).
    is_skippable = is_sliced or pool == "teacher"
    declared = {check.name for check in STAGE_CHECKS.get(name, ())}
    spec = dg.AssetSpec(
        graph.key(name),
        deps=[graph.build_dep(stage, upstream) for upstream in (*stage.upstream, *stage.after)],
        partitions_def=graph.partitions_def(stage.partition),
        group_name=graph.name,
        kinds=set(stage.kinds),
        owners=graph.owners,
        description=stage.description,
        code_version=stage.code_version,
        metadata=metadata,
        automation_condition=get_condition(name, graph.key),
        skippable=is_skippable,
    )

    @dg.multi_asset(
        name=graph.key(name).to_python_identifier(),
        specs=[spec],
        can_subset=is_skippable,  # otherwise Dagster requires results of its checks even if it is skipped
        backfill_policy=dg.BackfillPolicy.single_run() if is_sliced else None,
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
        if is_sliced and not context.has_partition_key:  # a partition range, even of length one
            run_each_slice(context, graph.name)
            return
        partition = context.partition_key if context.has_partition_key else None
        try:
            with (
                open_stage_context(context, graph.name) as env,
                progress.add_progress_listener(_log_each_tenth(context.log.info)),
                progress.work_on_artifact(format_artifact_name(name, partition)),
            ):
                made = make(env, partition)
                if not made.record.extra.get("blocked"):
                    progress.report_finished_artifact()
        except PendingError as error:  # not a failure: skip the asset and what needs it in this run
            why = redaction.redact(str(error))
            context.log.info(why)
            context.log_event(dg.AssetObservation(graph.key(name), description=why, partition=partition))
            return
        except DistillError as error:
            # Report a check that failed before anything was made as a failed check, not only as an error of the run.
            yield from (to_check_result(graph.key(name), check) for check in error.checks if check.name in declared)
            raise to_failure(error) from (None if redaction.redact_traceback(error) else error)
        except Exception as error:
            if redacted := redaction.redact_traceback(error):
                raise RuntimeError(redacted) from None
            raise
        yield dg.MaterializeResult(
            asset_key=graph.key(name),
            data_version=dg.DataVersion(made.record.data_version),
            metadata={name: to_metadata_value(value, env.reports) for name, value in made.shown.items()}
            | {"dagster/row_count": made.record.rows},
            check_results=[to_check_result(graph.key(name), check) for check in made.checks],
        )

    return _asset


def _log_each_tenth(
    log: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> progress.ProgressListener:
    """Build a listener that logs at each tenth of the work and every few minutes, with the time left, not at each step.

    Args:
        clock: tells seconds.
    """
    last: dict[str, tuple[int, float]] = {}
    began: dict[str, tuple[int, float]] = {}

    def listen(made: progress.Progress) -> None:
        if not made.work:
            return
        now, tenth = clock(), 10 * made.done // max(made.total, 1)
        sent = made.done - made.stored
        first, start = began.setdefault(made.work, (sent, now))
        if made.work in last and last[made.work][0] == tenth and now - last[made.work][1] < LOG_INTERVAL_S:
            return
        last[made.work] = tenth, now
        left = (made.total - made.done) * (now - start) / (sent - first) if sent > first else 0
        log(str(made) + (f", {format_clock(left)} left" if left >= 1 else ""))

    return listen


def to_metadata_value(value: DisplayValue, reports: Path) -> dg.MetadataValue:
    """Convert a display value to Dagster's metadata. A file in `reports` becomes a link that the UI serves."""
    if isinstance(value, Path):
        is_report = value.is_relative_to(reports)
        return dg.MetadataValue.url(build_report_url(value, reports)) if is_report else dg.MetadataValue.path(value)
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
    return dg.MetadataValue.text(value)


def build_source_assets(graph: TaskGraph) -> list[dg.SourceAsset]:
    """Build the user's files as observable assets. Observing them reads and hashes them and runs nothing else."""
    return [
        _build_source_asset(graph, name) for name, s in SOURCES.items() if s.feature is None or graph.has_source(name)
    ]


def _build_source_asset(graph: TaskGraph, name: str) -> dg.SourceAsset:
    source = SOURCES[name]
    partitions = graph.partitions_def(source.partition)

    @dg.observable_source_asset(
        key=graph.key(name),
        group_name=graph.observed_group,
        description=source.description,
        partitions_def=partitions,
        required_resource_keys={"tasks"},
    )
    def _observe(context) -> dg.DataVersion | dg.DataVersionsByPartition:  # type: ignore[no-untyped-def]
        folder: TaskFolder = context.resources.tasks.open(graph.name)
        try:
            if source.partition is None:
                return dg.DataVersion(compute_source_version(folder, name))
            keys = folder.list_slice_keys() if source.partition == "slice" else list(folder.task.students)
            return dg.DataVersionsByPartition({key: compute_source_version(folder, name, key) for key in keys})
        except DistillError as error:
            raise to_failure(error) from None

    return _observe
