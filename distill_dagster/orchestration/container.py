"""The entry point of a container: write the instance's dagster.yaml, then become the command.

`python -m distill_dagster.orchestration.container dagster-daemon run …`. The instance folder is ready before the first
process of Dagster looks for it, and the command gets every signal, since no other process stays in between.
"""

from __future__ import annotations

import os
import sys

from distill_dagster.core.errors import DistillError
from distill_dagster.core.paths import Home
from distill_dagster.orchestration.instance import prepare_instance_folder


def run_command() -> None:
    """Replace this process by the command of the arguments.

    Raises:
        SystemExit: No command was given, it does not exist, or a setting of the deployment has a mistake.
    """
    command = sys.argv[1:]
    if not command:
        raise SystemExit("No command. Name one, such as `dagster-daemon run` or `distill status my_task`.")
    try:
        prepare_instance_folder(Home.from_env())
        os.execvp(command[0], command)
    except DistillError as error:
        raise SystemExit(str(error)) from None
    except OSError as error:
        raise SystemExit(f"{command[0]}: {error.strerror}. Name a command of the image.") from None


if __name__ == "__main__":
    run_command()
