"""The entry point of a container: write the instance's dagster.yaml, then become the command.

`python -m distill_dagster.orchestration.container dagster-daemon run …`. The instance folder is ready before the first
process of Dagster looks for it, and the command gets every signal, since no other process stays in between.

With `--code-location HOST:PORT` before the command, it is the code location that others reach at this address. Runs
that Dagster's default launcher had started there ended with the container before it, and nobody else would notice.
"""

from __future__ import annotations

import json
import os
import sys

import dagster as dg
from dagster._core.storage.tags import GRPC_INFO_TAG

from distill_dagster.core import databases
from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import Home
from distill_dagster.orchestration.dead_runs import OPEN_STATUSES
from distill_dagster.orchestration.instance import prepare_instance_folder

OPTION = "--code-location"


def run_command() -> None:
    """Replace this process by the command of the arguments.

    Raises:
        SystemExit: No command was given, it does not exist, or a setting of the deployment has a mistake.
    """
    command, address = sys.argv[1:], ""
    if command[:1] == [OPTION]:
        address, command = "".join(command[1:2]), command[2:]
    if not command:
        raise SystemExit("No command. Name one, such as `dagster-daemon run` or `distill status my_task`.")
    try:
        prepare_instance_folder(Home.from_env())
        if address:
            with databases.prepare_databases(), dg.DagsterInstance.get() as instance:
                fail_runs_of_location(instance, address)
        os.execvp(command[0], command)
    except DistillError as error:
        raise SystemExit(str(error)) from None
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}. Name a command of the image.") from None


def fail_runs_of_location(instance: dg.DagsterInstance, address: str) -> list[str]:
    """Mark open runs as failed that Dagster's default launcher had started in the code location at this address.

    Call it before the code location starts again. Returns the ids of the runs that were marked.
    """
    marked = []
    for run in instance.get_runs(dg.RunsFilter(statuses=OPEN_STATUSES)):
        server = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
        if f"{server.get('host')}:{server.get('port')}" != address:
            continue
        instance.report_run_failed(run, "The code location that had started this run was stopped or lost.")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
        marked.append(run.run_id)
    return marked


if __name__ == "__main__":
    run_command()
