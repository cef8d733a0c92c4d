"""The `distill` command: it materializes the assets of a task in the Dagster instance that the UI shows.

A command reads options, calls the packages below and prints. Logic that anything else could need does not belong here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import click
import typer

from distill_dagster.cli.console import mode
from distill_dagster.cli.cost import estimate, ledger
from distill_dagster.cli.dataset_rows import explain, filters, keep
from distill_dagster.cli.imagination import imagine
from distill_dagster.cli.instance import env, ui
from distill_dagster.cli.intake import batches, import_, inbox
from distill_dagster.cli.lake import clean_lake
from distill_dagster.cli.materialize import backfill, refresh, run
from distill_dagster.cli.new_task import copy, label, new
from distill_dagster.cli.overview import check, status, tasks
from distill_dagster.cli.release import export, release, releases
from distill_dagster.cli.reports import data_docs, leaderboard, report
from distill_dagster.cli.schema import schema
from distill_dagster.cli.serve import serve
from distill_dagster.cli.served import drift, review
from distill_dagster.cli.tune import tune
from distill_dagster.core.openmp import limit_openmp_spin

__all__ = ["COMMANDS", "app"]

# Show our own progress bar only, and hide hints about optional kernels that a user cannot act on.
os.environ.setdefault("TQDM_DISABLE", "1")
limit_openmp_spin()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

app = typer.Typer(
    help="Distil a large model into a small student.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",  # paragraphs are wrapped at the width of the terminal
    pretty_exceptions_show_locals=False,  # local variables may hold a key
)
# `distill --help` lists the commands in this order, in these groups.
GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Start a task": {"tasks": tasks, "new": new, "copy": copy, "label": label, "schema": schema, "check": check},
    "Run it": {"run": run, "refresh": refresh, "backfill": backfill, "imagine": imagine, "tune": tune},
    "See what came out": {
        "status": status,
        "leaderboard": leaderboard,
        "report": report,
        "filters": filters,
        "explain": explain,
        "keep": keep,
        "data-docs": data_docs,
    },
    "Release and serve": {"release": release, "releases": releases, "serve": serve, "drift": drift, "export": export},
    "Know the cost": {"estimate": estimate, "ledger": ledger},
    "Take in data": {"import": import_, "inbox": inbox, "review": review, "batches": batches},
    "Use Dagster": {"ui": ui, "env": env, "clean-lake": clean_lake},
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def _print_version(value: bool) -> None:
    if value:
        click.echo(f"distill {version('distill-dagster')}")
        raise typer.Exit


@app.callback()
def _start_command(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Distil a large model into a small student."""
    mode.reset()


for title, commands in GROUPS.items():
    for name, command in commands.items():
        app.command(name, rich_help_panel=title)(command)
