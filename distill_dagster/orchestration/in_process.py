"""Execute one Dagster run in this process and read its result."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import dagster as dg
from dagster._core.definitions.repository_definition import SINGLETON_REPOSITORY_NAME
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.execution.plan.objects import ErrorSource
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import MAX_RETRIES_TAG
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.utils import make_new_run_id

from distill_dagster.core.paths import PROJECT_FOLDER
from distill_dagster.orchestration.pool_waits import WaitListener, watch_pools
from distill_dagster.orchestration.tags import CAMPAIGN_TAG, build_process_tag

CODE_LOCATION = "distill_dagster.definitions"
"""The module with the definitions. The UI calls the code location by its name."""


def run_in_process(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    partition: str | None,
    assets: Sequence[dg.AssetKey] | None,
    tags: Mapping[str, str],
    notify_wait: WaitListener = lambda _: None,
) -> dg.ExecuteInProcessResult:
    """Execute one run in this process without console output. The result says whether it failed.

    Args:
        tags: Must contain the campaign tag: the id of the outer run, if there is one.
        notify_wait: Told what the run waits for while another run has its pool.

    Raises:
        DagsterUnknownPartitionError: The slice was removed meanwhile.
        KeyboardInterrupt: The run was interrupted, or its outer run is being cancelled. Dagster swallows the
            interrupt of an in-process run, so callers that start many runs rely on this exception to stop.
    """
    run_id = make_new_run_id()
    has_retries = instance.run_retries_enabled and instance.run_retries_max_retries > 0
    with _create_runs_of_code_location(instance, job.name), watch_pools(instance, run_id, notify_wait):
        result = job.execute_in_process(
            instance=instance,
            partition_key=partition,
            asset_selection=assets,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            # Dagster must not start it again elsewhere: its own process, or the run around it, decides that.
            tags={**tags, **build_process_tag(run_id), **({MAX_RETRIES_TAG: "0"} if has_retries else {})},
            run_id=run_id,
            raise_on_error=False,
        )
    outer_run = instance.get_run_by_id(tags[CAMPAIGN_TAG])
    canceled = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
    is_canceled = outer_run is not None and outer_run.status in canceled
    if is_canceled or any(map(_is_interrupt, result.all_events)):
        raise KeyboardInterrupt
    return result


def _is_interrupt(event: dg.DagsterEvent) -> bool:
    """Whether a step was interrupted, or the run between two steps."""
    if event.is_step_failure:
        return event.step_failure_data.error_source == ErrorSource.INTERRUPT
    error = event.job_failure_data.error if event.event_type == dg.DagsterEventType.RUN_FAILURE else None
    return error is not None and error.cls_name == DagsterExecutionInterruptedError.__name__


@contextmanager
def _create_runs_of_code_location(instance: dg.DagsterInstance, job: str) -> Iterator[None]:
    """Within this block, runs name the code location of the UI, whose timeline and jobs show no other runs.

    Dagster takes no origin for an in-process run, so this adds one to the call that creates the run.
    """
    target = LoadableTargetOrigin(
        executable_path=sys.executable, module_name=CODE_LOCATION, working_directory=str(PROJECT_FOLDER)
    )
    location = ManagedGrpcPythonEnvCodeLocationOrigin(target, CODE_LOCATION)
    origin = RemoteRepositoryOrigin(location, SINGLETON_REPOSITORY_NAME).get_job_origin(job)
    create = partial(instance.create_run_for_job, remote_job_origin=origin)
    instance.create_run_for_job = create  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(instance).pop("create_run_for_job", None)  # the method of the class shows again


def find_pending_assets(result: dg.ExecuteInProcessResult) -> dict[dg.AssetKey, str]:
    """Return the assets that a run skipped because their batch has not ended, with the reason."""
    observations = [event.asset_observation_data.asset_observation for event in result.get_asset_observation_events()]
    return {observation.asset_key: observation.description or "" for observation in observations}
