"""`distill env` and `ui`: use the Dagster instance directly."""

from __future__ import annotations

import os
from typing import Annotated

import typer
from rich.markup import escape

from distill_dagster.cli.console import err, out, print_problem, show_problems
from distill_dagster.core.database_urls import POSTGRES_DRIVER, POSTGRES_VARIABLE, STORE_VARIABLE
from distill_dagster.core.disk_errors import explain_disk_error
from distill_dagster.core.paths import Home


def env() -> None:
    """Print the variables that plain `dagster` and `dg` commands need: `eval "$(distill env)"`."""
    from distill_dagster import orchestration

    urls = {name: os.environ[name] for name in (POSTGRES_VARIABLE, STORE_VARIABLE) if os.environ.get(name)}
    try:
        orchestration.prepare_instance_folder(Home.from_env())
    except OSError as error:  # the variables are right all the same
        if (reason := explain_disk_error(error)) is None:
            raise
        err.print(f"[yellow]warning[/yellow] {escape(reason)}", soft_wrap=True)
    for name in ("DAGSTER_HOME", "DISTILL_HOME", "DISTILL_TASKS"):
        if value := os.environ.get(name):
            print(f"export {name}={value!r}")
    for name, value in urls.items():
        # Never print the value, which holds a password. The shell has it and adds the driver itself.
        driver = (
            f'="{POSTGRES_DRIVER}://${{{name}#*://}}"' if value.startswith(("postgres://", "postgresql://")) else ""
        )
        print(f"export {name}{driver}")


def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="The port on 127.0.0.1.")] = 3000) -> None:
    """Start the Dagster webserver and daemon on 127.0.0.1, with the instance that `distill run` uses."""
    from distill_dagster import orchestration
    from distill_dagster.orchestration.ui import lock_ui, serve_ui, sync_tasks

    home = Home.from_env()
    with show_problems(), orchestration.open_instance(home) as instance, lock_ui(home, port) as lock:
        for error in sync_tasks(home, instance):
            for problem in error.problems:
                print_problem(problem)
        out.print("Starting the UI. This takes about ten seconds.")
        message = "The UI is on {}. Press Ctrl-C to stop it."
        serve_ui(home, instance, port, lock, lambda address: out.print(message.format(address)))
        out.print("The UI has stopped.")
