"""Tags on Dagster runs and events: data version, campaign, budget, process."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError

from distill_dagster.config import BudgetSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.core.processes import get_process_name

DATA_VERSION_TAG = "dagster/data_version"
"""Dagster's own tag for the data version of an event."""
BACKFILL_TAG, PARTITION_SET_TAG = "dagster/backfill", "dagster/partition_set"
"""Dagster's own tags for the backfill that a run belongs to, and for the partitions of its job."""
CAMPAIGN_TAG = "distill/campaign"
"""Groups the runs of one command, backfill or schedule tick. Its value is the outer run's id if there is one."""
JOB_BACKFILL_TAG = ".dagster/distill_backfill"
"""The backfill of an inner run that cannot carry Dagster's own tag. The UI does not show it."""
LAUNCH_TAG = ".dagster/distill_launch"
"""The campaign of a run that a command handed to the instance. The UI does not show it."""
PARTITION_TAG = "dagster/partition"
"""Dagster's own tag for the partition of a run."""
BUDGET_TAGS = {"usd": "distill/budget_usd", "tokens": "distill/budget_tokens"}
"""The campaign's own caps, from the command line or set when a run or backfill is launched."""
PROCESS_TAG = ".dagster/distill_process"
"""The process of a run: the run's id, then host, process id and start time. The UI does not show it."""

RAY_JOB_TAG = "distill/ray_job"
"""The id of a run's job on a Ray cluster: `ray job logs <id>` shows what it wrote."""


def build_budget_tags(cap: BudgetSpec) -> dict[str, str]:
    """Write a campaign's caps as tags, which each of its runs carries."""
    caps = {tag: getattr(cap, name) for name, tag in BUDGET_TAGS.items()}
    return {tag: str(value) for tag, value in caps.items() if value is not None}


def read_budget_tags(tags: Mapping[str, str]) -> BudgetSpec:
    """Read the caps from a run's tags.

    Raises:
        DistillError: A tag is not a number. Nothing may be spent under a cap that cannot be read.
    """
    try:
        return BudgetSpec.model_validate({name: tags[tag] for name, tag in BUDGET_TAGS.items() if tag in tags})
    except ValidationError as error:
        problems = "; ".join(f"{BUDGET_TAGS[str(e['loc'][0])]} is {e['input']!r}: {e['msg']}" for e in error.errors())
        raise DistillError(
            f"The budget tags of this run cannot be read: {problems}. Give USD, or a whole number of tokens, 0 or more."
        ) from None


def build_process_tag(run_id: str) -> dict[str, str]:
    """Build the tag that names this process, so that the run can be marked as failed when its process dies.

    It names the run too: a run that is executed again in the UI gets the tags of the first one.
    """
    return {PROCESS_TAG: f"{run_id} {get_process_name()}"}


def read_process_tag(run_id: str, tags: Mapping[str, str]) -> str | None:
    """Read the process of a run, or None if it is not known."""
    tagged, _, process = tags.get(PROCESS_TAG, "").partition(" ")
    return process if tagged == run_id else None
