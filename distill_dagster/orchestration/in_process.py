"""Execute one Dagster run in this process and read its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg
from dagster._core.execution.plan.objects import ErrorSource

from distill_dagster.orchestration.tags import CAMPAIGN_TAG


def run_in_process(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    partition: str | None,
    assets: Sequence[dg.AssetKey] | None,
    tags: Mapping[str, str],
) -> dg.ExecuteInProcessResult:
    """Execute one run in this process without console output. The result says whether it failed.

    Args:
        tags: Must contain the campaign tag: the id of the outer run, if there is one.

    Raises:
        DagsterUnknownPartitionError: The slice was removed meanwhile.
        KeyboardInterrupt: The run was interrupted, or its outer run is being cancelled. Dagster swallows the
            interrupt of an in-process run, so callers that start many runs rely on this exception to stop.
    """
    result = job.execute_in_process(
        instance=instance,
        partition_key=partition,
        asset_selection=assets,
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        tags=tags,
        raise_on_error=False,
    )
    outer_run = instance.get_run_by_id(tags[CAMPAIGN_TAG])
    canceled = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)
    is_canceled = outer_run is not None and outer_run.status in canceled
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    if is_canceled or any(failure.error_source == ErrorSource.INTERRUPT for failure in failures):
        raise KeyboardInterrupt
    return result


def find_pending_assets(result: dg.ExecuteInProcessResult) -> dict[dg.AssetKey, str]:
    """Return the assets that a run skipped because their batch has not ended, with the reason."""
    observations = [event.asset_observation_data.asset_observation for event in result.get_asset_observation_events()]
    return {observation.asset_key: observation.description or "" for observation in observations}


def get_failure_message(error: Any) -> str:
    """Return the innermost message of a step failure, without Dagster's wrapping."""
    if error is None:
        return "the step failed; see its log in the UI"
    while error.cause is not None:
        error = error.cause
    return str(error.message).split(": ", 1)[-1].strip()
