"""`distill estimate` and `ledger`: what teachers will cost, and what they have cost."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from distill_dagster.cli.console import build_table, out, print_json, print_table, show_problems
from distill_dagster.cli.options import JsonOption, SliceOption, TaskArgument, open_task_folder
from distill_dagster.config.replay import REPLAY_PREFIX
from distill_dagster.config.teacher import EMBEDDED_PREFIX
from distill_dagster.core.database_urls import get_store_url
from distill_dagster.core.formatting import count_noun, format_seconds, format_usd
from distill_dagster.core.paths import Home
from distill_dagster.pipeline.backfill_selection import SLICE_STAGES, select_named_slices
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.open_lake import open_lake
from distill_dagster.tasks import TaskFolder

if TYPE_CHECKING:
    from distill_dagster.teacher.asking.estimate import Estimate


def estimate(
    task: TaskArgument = None,
    slices: SliceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate what it takes to bring a task up to date: requests, tokens, USD and time. Sends nothing.

    Tokens and USD are upper bounds: they assume that every answer has its maximum length. USD are unknown if a price
    is unknown.
    """
    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        state = TaskState(folder, open_lake(home))
        keys = select_named_slices(folder, slices) if slices else folder.list_slice_keys()
        print_estimate(home, folder, state, keys, golden=not slices)


def print_estimate(home: Home, folder: TaskFolder, state: TaskState, keys: list[str], golden: bool) -> None:
    """Print what it takes to materialize these slices, by slice and teacher."""
    from distill_dagster.teacher.asking.estimate import sum_estimates

    estimates = _run_estimate(home, folder, keys, golden)
    # Leave out columns whose value is the same in every row.
    several = len({(entry.teacher, entry.purpose) for entry in estimates}) > 1
    teacher_columns = ("teacher", "for") if several else ()
    names = ("slice", "state", *teacher_columns, "prompts", "to send", "stored", "tokens at most", "USD at most")
    table = build_table(*names, numbers=names[-5:])
    teachers = [(name, part.teacher) for name, part in folder.task.list_teachers()]
    free = {entry for name, spec in teachers if spec.is_free for entry in (name, spec.model)}
    for entry in estimates:
        freshness = _find_slice_state(state, entry.slice) if entry.slice in keys else ""
        usd = _format_cost(entry.usd, entry.teacher in free)
        teacher_cells = (escape(entry.teacher), entry.purpose) if several else ()
        counts = f"{entry.prompts:,}", f"{entry.calls:,}", f"{entry.cached:,}", f"{entry.tokens:,}", usd
        table.add_row(escape(entry.slice), freshness, *teacher_cells, *counts)
    print_table(table)
    total = sum_estimates(estimates)
    least = "at least " if any(spec.resolve_labels for spec in folder.task.teacher_specs) else ""
    paid = sum_estimates([entry for entry in estimates if entry.teacher not in free])
    if all(entry.teacher in free for entry in estimates):
        usd = "nothing, the teacher is local"
    else:
        usd = "unknown (a price is unknown)" if paid["usd"] is None else format_usd(paid["usd"])
    wall = "unknown until it has answered" if total["wall_s"] is None else format_seconds(total["wall_s"])
    out.print(
        f"{count_noun(len(keys), 'slice')}: {least}{count_noun(int(total['teacher_calls'] or 0), 'request')} to send, "
        f"{total['teacher_calls_cached']:,} answered by the store. At most {total['tokens']:,} tokens; cost at most "
        f"{usd}; time {wall}. Nothing was sent.",
        soft_wrap=True,
        highlight=False,
    )
    entries = {"estimates": [asdict(entry) for entry in estimates]}
    print_json({"partitions": {"teacher_completions": keys}} | total | entries)


def _format_cost(usd: float | None, is_free: bool) -> str:
    return f"{usd:.4f}" if usd is not None else "local" if is_free else "unknown"


def _find_slice_state(state: TaskState, key: str) -> str:
    """The state of a slice: that of its first artifact that is not fresh, or `stale` if what all slices share is."""
    own = [state.get_status(stage, key).state for stage in SLICE_STAGES]
    shared = {name for stage in SLICE_STAGES for name in state.stages[stage].upstream if name in state.stages}
    before = [state.get_status(name).state for name in shared - {*SLICE_STAGES}]
    changed = "stale" if any(found != "fresh" for found in before) else "fresh"
    return next((found for found in own if found != "fresh"), changed)


def _run_estimate(home: Home, folder: TaskFolder, keys: list[str], golden: bool) -> list[Estimate]:
    from distill_dagster.student.sentences import make_sentence_embedder
    from distill_dagster.teacher.asking.estimate import estimate_requests
    from distill_dagster.teacher.completions.store import open_store_for_reading

    with open_store_for_reading(home.store, get_store_url()) as store:
        return estimate_requests(
            folder, store, keys, lambda spec: make_sentence_embedder(spec, home.models), golden=golden
        )


def ledger(
    task: TaskArgument = None,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", help="Write all rows to this Parquet file, and show no table.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what was spent on teachers: requests, tokens and USD by month, teacher, purpose and state."""
    import duckdb

    from distill_dagster.tables.parquet import write_parquet
    from distill_dagster.teacher.completions.store import open_store_for_reading

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        with open_store_for_reading(home.store, get_store_url()) as store:
            rows = store.read_ledger().filter(task=folder.name)
        if parquet is not None:
            write_parquet(rows, parquet, {})
            out.print(f"{count_noun(rows.height, 'row')} in {escape(str(parquet))}", soft_wrap=True)
        with duckdb.connect() as connection:
            connection.register("ledger", rows.to_arrow())
            spending = connection.sql(_SPENDING_QUERY).fetchall()
        names = ("month", "teacher", "for", "state", "requests", "tokens", "usd")
        if parquet is None:
            title = f"{folder.name}: spent on teachers"
            table = build_table(*names, title=title, whole=("month",), numbers=names[-3:])
            for row in spending:
                usd = _format_cost(row[-1], row[1].startswith((EMBEDDED_PREFIX, REPLAY_PREFIX)))
                table.add_row(*(escape(str(value)) for value in row[:4]), f"{row[4]:,}", f"{row[5]:,}", usd)
            print_table(table)
        print_json({"task": folder.name, "ledger": [dict(zip(names, row, strict=True)) for row in spending]})


_SPENDING_QUERY = """
WITH taken AS (
    SELECT *, coalesce(tokens, worst_tokens) AS took,
        CASE state WHEN 'released' THEN 0 ELSE coalesce(usd, CASE state WHEN 'reserved' THEN worst_usd END) END AS cost
    FROM ledger
)
SELECT month, teacher, purpose, state, count(*), sum(took)::BIGINT,
    CASE WHEN count(cost) = count(*) THEN sum(cost) END
FROM taken GROUP BY ALL ORDER BY ALL
"""
