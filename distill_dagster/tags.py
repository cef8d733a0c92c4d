"""Tags on runs and events: which data version, which command, which process."""

from __future__ import annotations

import os
import platform

DATA_VERSION_TAG = "dagster/data_version"
"""The tag under which Dagster keeps an event's data version."""
BACKFILL_TAG = "dagster/backfill"
"""The tag under which Dagster keeps the backfill that a run belongs to."""
CAMPAIGN_TAG = "distill/campaign"
"""Joins the runs of one command, one backfill or one tick of the schedule; where a run holds them, its id."""
PID_TAG, HOST_TAG = "distill/pid", "distill/host"


def run_tags(campaign: str) -> dict[str, str]:
    """Tags of a run in this process, by which it is found to be dead once the process is gone."""
    return {PID_TAG: str(os.getpid()), HOST_TAG: platform.node(), CAMPAIGN_TAG: campaign}
