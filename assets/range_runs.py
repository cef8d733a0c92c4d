"""Runs over a range of slices, with a data version, checks and failures for each slice.

Dagster gives all partitions of one run the same data version, and one failing key fails them all. So the first asset of
such a run starts an inner run for each slice, in the same process. Inner runs share the loaded libraries and the warm
teacher. The other assets of the outer run are skipped. A range of one slice, which a backfill makes from slices that
are not adjacent, works the same way.
"""

from contextlib import ExitStack

import dagster as dg

from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun
from distill_dagster.orchestration import find_pending_assets, run_in_process
from distill_dagster.orchestration.tags import (
    BACKFILL_TAG,
    BUDGET_TAGS,
    CAMPAIGN_TAG,
    JOB_BACKFILL_TAG,
    PARTITION_SET_TAG,
)


def run_each_slice(context: dg.AssetExecutionContext, task: str) -> None:
    """Start an inner run of the run's selection for each of its slices.

    Raises:
        dg.Failure: Slices failed; the message names them. The others are done.
    """
    step = context.get_step_execution_context().step.key
    # Release our pool slot: the inner runs need it, and holding it would deadlock.
    context.instance.event_log_storage.free_concurrency_slot_for_step(context.run.run_id, step)
    tags = {CAMPAIGN_TAG: context.run.run_id}
    tags |= {tag: value for tag, value in context.run.tags.items() if tag in BUDGET_TAGS.values()}
    context.instance.add_run_tags(context.run.run_id, tags)
    if backfill := context.run.tags.get(BACKFILL_TAG):
        # A backfill of assets counts only runs with its tag; without them it ends as failed. A backfill of a job counts
        # ranges, and its page fails for runs without one.
        tags[JOB_BACKFILL_TAG if PARTITION_SET_TAG in context.run.tags else BACKFILL_TAG] = backfill
    assets = sorted(context.run.asset_selection or ()) or None  # sorted, since the list of runs shows them
    failed: list[str] = []
    keys = list(context.partition_keys)
    with ExitStack() as stack:
        if any(key.path[-1] == "teacher_completions" for key in context.job_def.asset_layer.executable_asset_keys):
            try:
                spec = context.resources.tasks.open(task).task.teacher
                stack.enter_context(context.resources.teacher.open_endpoint(spec))
            except DistillError:
                pass  # the run of each slice reports it
        for number, key in enumerate(keys, start=1):
            try:
                result = run_in_process(context.job_def, context.instance, key, assets, tags)
            except dg.DagsterUnknownPartitionError:
                context.log.warning(f"{key}: has been removed ({number} of {len(keys)})")
                continue
            if not result.success:
                failed.append(key)
            state = "waiting for answers" if find_pending_assets(result) else "done" if result.success else "failed"
            context.log.info(f"{key}: {state} ({number} of {len(keys)})")
    if failed:
        names = ", ".join(failed)
        raise dg.Failure(
            f"{len(failed)} of {count_noun(len(keys), 'slice')} failed: {names}. Each has its own run, which shows the "
            "error.",
            allow_retries=False,
        )
