"""The `distill` command: it materializes the assets of a task in the Dagster instance that the UI shows.

A command reads options, calls the packages below and prints. Logic that anything else could need does not belong here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

import typer

from distill_dagster.cli.cost import estimate, ledger
from distill_dagster.cli.dataset_rows import explain, filters
from distill_dagster.cli.imagination import imagine
from distill_dagster.cli.instance import env, ui
from distill_dagster.cli.intake import batches, import_, inbox
from distill_dagster.cli.materialize import backfill, refresh, run
from distill_dagster.cli.overview import check, status, tasks
from distill_dagster.cli.reports import data_docs, report
from distill_dagster.core.openmp import limit_openmp_spin

__all__ = ["app"]

# Show our own progress bar only, and hide hints about optional kernels that a user cannot act on.
os.environ.setdefault("TQDM_DISABLE", "1")
limit_openmp_spin()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

app = typer.Typer(
    help="Distil a large model into a small student.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",  # paragraphs are wrapped at the width of the terminal
    pretty_exceptions_show_locals=False,  # local variables may hold a key
)
# `distill --help` lists the commands in this order.
COMMANDS: dict[str, Callable[..., None]] = {
    "tasks": tasks,
    "check": check,
    "status": status,
    "run": run,
    "refresh": refresh,
    "backfill": backfill,
    "estimate": estimate,
    "ledger": ledger,
    "inbox": inbox,
    "batches": batches,
    "import": import_,
    "imagine": imagine,
    "filters": filters,
    "explain": explain,
    "report": report,
    "data-docs": data_docs,
    "env": env,
    "ui": ui,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
