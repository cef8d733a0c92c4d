"""The refresh of a task: its job, its schedule, and the asset that records each refresh.

It makes what automation did not make. Nothing else trains students or writes reports without a person.
"""

from collections.abc import Callable

import dagster as dg
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster._utils.schedules import is_valid_cron_schedule

from assets.task_graph import TaskGraph
from distill_dagster.config import RefreshSpec
from distill_dagster.orchestration import RunSummary, build_refresh_event
from distill_dagster.orchestration.tags import CAMPAIGN_TAG, build_process_tag
from distill_dagster.pipeline.stage_table import REFRESHES_ASSET

Refresh = Callable[[dg.OpExecutionContext, str, bool], RunSummary]
"""Refreshes the named task. The last argument is `force`, as in `distill refresh --force`."""


def build_refresh_definitions(graph: TaskGraph, spec: RefreshSpec, refresh: Refresh) -> dg.Definitions:
    """Build the job, its schedule, and the asset that has one event per refresh."""
    key = graph.key(REFRESHES_ASSET)
    age = spec.compute_max_age()
    asset = dg.AssetSpec(
        key,
        group_name=graph.observed_group,
        kinds={"dagster"},
        owners=graph.owners,
        description=f"One event per refresh, by the schedule or by `distill refresh {graph.name}`: what it made, "
        "requests, tokens and cost. Overdue if there has been none for too long.",
        freshness_policy=dg.FreshnessPolicy.time_window(fail_window=age) if age else None,
    )

    @dg.op(
        name=f"{graph.identifier}_refresh_all",
        config_schema={
            "force": dg.Field(
                bool,
                default_value=False,
                description="Train even if few rows changed, and ask for missing rows at once.",
            )
        },
        description="Compares today's files with what each artifact was made from, and makes what is not fresh.",
    )
    def _refresh(context: dg.OpExecutionContext) -> None:
        # With these tags a killed run can be marked as failed.
        tags = {CAMPAIGN_TAG: context.run_id} | build_process_tag(context.run_id)
        context.instance.add_run_tags(context.run_id, tags)
        summary = refresh(context, graph.name, context.op_config["force"])
        context.log_event(build_refresh_event(graph.name, summary))
        problems = [f"failed: {name}: {why}" for name, why in summary.failed.items()]
        problems += [f"blocked: {name}: {why}" for name, why in summary.blocked.items()]
        if problems:
            raise dg.Failure("\n".join(problems), allow_retries=False)

    @dg.job(
        name=f"{graph.identifier}_refresh",
        executor_def=dg.in_process_executor,
        description=f"Does what `distill refresh {graph.name}` does: makes everything that is not fresh, students "
        "included. Each artifact has its own run.",
    )
    def _job() -> None:
        _refresh()

    def _tick(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
        running_filter = dg.RunsFilter(job_name=_job.name, statuses=IN_PROGRESS_RUN_STATUSES)
        if running := context.instance.get_run_ids(running_filter, limit=1):
            return dg.SkipReason(f"The previous refresh is still running: run {running[0]}.")
        return dg.RunRequest()

    rows = f"more than {spec.min_new_rows} rows" if spec.min_new_rows else "any row"
    schedules = []
    if spec.cron is not None and is_valid_cron_schedule(spec.cron):
        schedules.append(
            dg.ScheduleDefinition(
                name=f"{graph.identifier}_refresh_schedule",
                job=_job,
                execution_fn=_tick,
                cron_schedule=spec.cron,
                execution_timezone=spec.timezone,
                default_status=graph.schedule_status,
                description=f"Makes what automation left over, and trains students if {rows} of their dataset "
                f"changed.{graph.stopped}",
            )
        )
    return dg.Definitions(assets=[asset], jobs=[_job], schedules=schedules)
