"""Tags on runs and events: which data version, which command, which process."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

from pydantic import ValidationError

from distill_dagster.config import BudgetSpec
from distill_dagster.core.errors import DistillError

DATA_VERSION_TAG = "dagster/data_version"
"""The tag under which Dagster keeps an event's data version."""
BACKFILL_TAG = "dagster/backfill"
"""The tag under which Dagster keeps the backfill that a run belongs to."""
CAMPAIGN_TAG = "distill/campaign"
"""Joins the runs of one command, one backfill or one tick of the schedule; where a run holds them, its id."""
BUDGET_TAGS = {"usd": "distill/budget_usd", "tokens": "distill/budget_tokens"}
"""What this campaign may spend, beside task.yaml: from the command line, or set where a run or backfill is launched."""
PID_TAG, HOST_TAG = "distill/pid", "distill/host"


def build_budget_tags(cap: BudgetSpec) -> dict[str, str]:
    """A campaign's own caps as tags, which each of its runs carries."""
    caps = {tag: getattr(cap, name) for name, tag in BUDGET_TAGS.items()}
    return {tag: str(value) for tag, value in caps.items() if value is not None}


def read_budget_tags(tags: Mapping[str, str]) -> BudgetSpec:
    """The caps that a run's tags carry.

    Raises:
        DistillError: a tag holds no number; nothing may be spent under a cap that cannot be read.
    """
    try:
        return BudgetSpec.model_validate({name: tags[tag] for name, tag in BUDGET_TAGS.items() if tag in tags})
    except ValidationError as error:
        told = "; ".join(f"{BUDGET_TAGS[str(e['loc'][0])]} is {e['input']!r}: {e['msg']}" for e in error.errors())
        raise DistillError(f"The run's tags name no budget: {told}. Give USD and whole tokens, 0 or more.") from None


def build_run_tags(campaign: str) -> dict[str, str]:
    """Tags of a run in this process, by which it is found to be dead once the process is gone."""
    return {PID_TAG: str(os.getpid()), HOST_TAG: platform.node(), CAMPAIGN_TAG: campaign}
