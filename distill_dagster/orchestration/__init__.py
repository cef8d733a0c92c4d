"""Run the assets of a task from this process, in the Dagster instance that the UI shows.

What belongs here needs Dagster: runs, partitions, tags, the refresh. What is stale is decided in `pipeline`. Only this
package and `definitions.py` import Dagster. `evaluation.metrics_table` imports dagster-pandas.
"""

from distill_dagster.orchestration.dead_runs import fail_dead_runs
from distill_dagster.orchestration.in_process import find_pending_assets, run_in_process
from distill_dagster.orchestration.instance import open_instance, prepare_instance_folder
from distill_dagster.orchestration.launched_runner import LaunchedRunner, build_runner
from distill_dagster.orchestration.partitions import (
    find_failed_slices,
    find_slice_changes,
    find_student_changes,
    find_trained_students,
    sync_task,
)
from distill_dagster.orchestration.refresh import build_refresh_event, refresh_task
from distill_dagster.orchestration.run_outcome import get_failure_message
from distill_dagster.orchestration.run_summary import RunSummary
from distill_dagster.orchestration.runner import Runner

__all__ = [
    "LaunchedRunner",
    "RunSummary",
    "Runner",
    "build_refresh_event",
    "build_runner",
    "fail_dead_runs",
    "find_failed_slices",
    "find_pending_assets",
    "find_slice_changes",
    "find_student_changes",
    "find_trained_students",
    "get_failure_message",
    "open_instance",
    "prepare_instance_folder",
    "refresh_task",
    "run_in_process",
    "sync_task",
]
