"""`distill env` and `ui`: use the Dagster instance directly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Annotated

import typer

from distill_dagster.cli.options import out, print_problem, show_problems
from distill_dagster.core.database_urls import POSTGRES_DRIVER, POSTGRES_VARIABLE, STORE_VARIABLE
from distill_dagster.core.errors import InputError
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.pipeline.open_task import find_tasks


def env() -> None:
    """Print the variables that plain `dagster` and `dg` commands need: `eval "$(distill env)"`."""
    from distill_dagster import orchestration

    urls = {name: os.environ[name] for name in (POSTGRES_VARIABLE, STORE_VARIABLE) if os.environ.get(name)}
    orchestration.prepare_instance_folder(Home.from_env())
    for name in ("DAGSTER_HOME", "DISTILL_HOME", "DISTILL_TASKS"):
        if value := os.environ.get(name):
            print(f"export {name}={value!r}")
    for name, value in urls.items():
        # Never print the value, which holds a password. The shell has it and adds the driver itself.
        driver = (
            f'="{POSTGRES_DRIVER}://${{{name}#*://}}"' if value.startswith(("postgres://", "postgresql://")) else ""
        )
        print(f"export {name}{driver}")


def ui(port: Annotated[int, typer.Option(help="The port on 127.0.0.1.")] = 3000) -> None:
    """Start the Dagster webserver and daemon on 127.0.0.1, with the instance that `distill run` uses."""
    from distill_dagster import orchestration

    home = Home.from_env()
    with show_problems(), orchestration.open_instance(home) as instance:
        for folder in find_tasks(home.tasks, home.accepted):
            try:
                orchestration.sync_task(folder, instance)
            except InputError as error:
                for problem in error.problems:
                    print_problem(problem)
    command = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)]
    command += ["-m", "distill_dagster.definitions"]
    out.print(f"The UI starts on http://127.0.0.1:{port} in about ten seconds. Press Ctrl-C to stop it.")
    process = subprocess.Popen(command, cwd=PROJECT_FOLDER)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: process.send_signal(signal.SIGINT))
    raise typer.Exit(process.wait())
