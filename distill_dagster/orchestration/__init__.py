"""Driving the assets from the command line: the same assets, in the same Dagster instance as the UI, in this process.

Part of the composition root, with `cli` and `definitions.py`: no other modules of the engine import Dagster.
"""

from distill_dagster.orchestration.in_process import failure_message, pending_in, run_within
from distill_dagster.orchestration.instance import instance_folder, open_instance
from distill_dagster.orchestration.partitions import failed_slices, slice_changes, sync
from distill_dagster.orchestration.refresh import refresh_event, refresh_task
from distill_dagster.orchestration.run_summary import Outcome
from distill_dagster.orchestration.runner import Event, Runner

__all__ = [
    "Event",
    "Outcome",
    "Runner",
    "failed_slices",
    "failure_message",
    "instance_folder",
    "open_instance",
    "pending_in",
    "refresh_event",
    "refresh_task",
    "run_within",
    "slice_changes",
    "sync",
]
