"""`distill filters`, `explain` and `keep`: why a row is in the dataset or not, and a dataset kept for later."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from distill_dagster.cli.console import build_table, mode, out, print_json, print_table, show_problems
from distill_dagster.cli.options import JsonOption, QuietOption, TaskArgument, TaskName, open_task_folder
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.paths import Home
from distill_dagster.curation.filters import select_task_filters
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.tables.schemas import DATASET


def filters(
    task: TaskArgument = None,
    dropped: Annotated[str | None, typer.Option("--dropped", help="Show rows dropped for this reason.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List the filters of a task in their order, with the number of rows that each dropped.

    Runs nothing. docs/filters.md describes every filter.
    """
    from distill_dagster.pipeline.row_history import list_dropped_rows
    from distill_dagster.pipeline.stages.dataset import list_filters

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        lake = open_lake(home)
        status = TaskState(folder, lake).get_status("filtered_dataset")
        extra = status.record.extra if status.record is not None else {}
        rows = list_filters(select_task_filters(folder.task), extra.get("reasons", {}))
        table = build_table("", "filter", "drop reason", "parameters", "dropped", whole=("filter", "drop reason"))
        for row in rows:
            count = "" if row["dropped"] is None else f"{row['dropped']:,}"
            cells = (row["order"], row["filter"], row["drop_reason"], row["parameters"])
            table.add_row(*(escape(str(cell)) for cell in cells), count)
        print_table(table)
        masked = f", {extra['masked_rows']:,} of them masked" if "masked_rows" in extra else ""
        made = (
            "never made"
            if status.record is None
            else f"{status.state}, {count_noun(status.record.rows, 'row')} kept{masked}"
        )
        out.print(f"{folder.name}: filtered_dataset is {made}")
        dropped_rows = list_dropped_rows(lake, folder.name, dropped, limit) if dropped is not None else []
        for row in dropped_rows:
            text = f"{row['drop_detail'] or ''} | {row['text']}"
            out.print(f"{row['prompt_id'][:12]} [dim]{escape(row['slice'])}[/dim] {escape(text[:200])}", soft_wrap=True)
        more = {"rows": dropped_rows} if dropped is not None else {}
        print_json({"task": folder.name, "state": status.state, "filters": rows} | more)


def keep(
    task: TaskName,
    name: Annotated[str, typer.Argument(help="The name that `data.replay.dataset` of a student refers to.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Keep the dataset of today in the task folder, so that students can replay its rows later.

    Later datasets may lack them, for example after a slice was removed. A kept dataset is never replaced.
    """
    from distill_dagster.tasks.kept_datasets import write_kept_dataset

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        lake = open_lake(home)
        dataset, record = lake.read(folder.name, "filtered_dataset", None, DATASET)
        path = write_kept_dataset(folder.path, name, dataset)
        out.print(f"{count_noun(record.rows, 'row')}: {path}", soft_wrap=True, highlight=False)
        print_json({"task": folder.name, "dataset": name, "rows": record.rows, "path": str(path)})


def explain(
    task: TaskName,
    prompt_id: Annotated[str, typer.Argument(help="The id of a prompt, or the first characters of one.")],
    as_json: JsonOption = False,
) -> None:
    """Show the history of one row: prompt, completions, scores, and which filter dropped it and why."""
    from distill_dagster.cli.prompt_history import print_prompt_history
    from distill_dagster.pipeline.row_history import trace_prompt

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        history = trace_prompt(folder, open_lake(home), prompt_id.lower())
        print_json(history)
        if not mode.as_json:
            print_prompt_history(history, folder)
