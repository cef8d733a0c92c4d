"""The `distill` command: drives the assets of a task in the same Dagster instance as the UI."""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from distill_dagster import progress, secrets
from distill_dagster.database import DRIVER, POSTGRES, STORE, store_url
from distill_dagster.errors import DistillError, InputError, Problem
from distill_dagster.importing import Target
from distill_dagster.lake import Lake
from distill_dagster.openmp import settle_waiting
from distill_dagster.paths import PROJECT, Home
from distill_dagster.selection import Lacking, lacking_slices, named_slices, slice_range
from distill_dagster.spec import BudgetSpec
from distill_dagster.state import State
from distill_dagster.taskfiles import TaskFolder, check_folder, find_tasks, open_task

if TYPE_CHECKING:
    from distill_dagster.runs import Outcome
    from distill_dagster.teacher.estimate import Estimate

# One progress bar, ours; and no remark of a library on optional kernels that a user cannot act on.
os.environ.setdefault("TQDM_DISABLE", "1")
settle_waiting()
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

app = typer.Typer(
    help="Distil a large model into a small student.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # a key may be among them
)
out, err = Console(), Console(stderr=True)

TaskArgument = Annotated[str | None, typer.Argument(help="The task; may be left out where there is only one.")]
BudgetUsd = Annotated[
    float | None,
    typer.Option(help="USD that this command may spend on teachers; `budget.usd` in task.yaml counts where lower."),
]
BudgetTokens = Annotated[
    int | None,
    typer.Option(help="The same in tokens of prompts and answers, beside `budget.tokens`."),
]
WAITING = 3
"""Exit code of a command that has no answers yet of batches that it submitted; 1 is a failure, 2 bad input."""
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object last.")]


@contextmanager
def _errors() -> Iterator[None]:
    """Problems of the user are shown as messages, one a line, without a traceback."""
    try:
        yield
    except InputError as error:
        for problem in error.problems:
            _show(problem)
        raise typer.Exit(2) from None
    except DistillError as error:
        err.print(f"[red]error[/red] {escape(secrets.scrubbed(str(error)))}", soft_wrap=True)
        raise typer.Exit(1) from None
    except Exception as error:
        if clean := secrets.trace_with_secret(error):
            err.print(escape(clean), soft_wrap=True)
            raise typer.Exit(1) from None
        raise


def _show(problem: Problem) -> None:
    colour = "red" if problem.severity == "error" else "yellow"
    err.print(f"[{colour}]{problem.severity}[/{colour}] {escape(str(problem))}", soft_wrap=True)


def _open(home: Home, task: str | None) -> TaskFolder:
    if task is not None:
        return open_task(home.tasks, task, home.accepted)
    known = find_tasks(home.tasks, home.accepted)
    if len(known) != 1:
        names = ", ".join(t.name for t in known) or "none"
        problem = Problem(home.tasks, "name a task.", f"Known tasks: {names}.")
        raise InputError([problem])
    return known[0]


def _students(folder: TaskFolder, chosen: list[str] | None) -> list[str]:
    known = list(folder.task.students)
    for name in chosen or []:
        if name not in known:
            problem = Problem(
                folder.path / "task.yaml", f"there is no student {name!r}.", f"Known: {', '.join(known)}."
            )
            raise InputError([problem])
    return chosen or [folder.task.chosen_student]


def _cap(usd: float | None, tokens: int | None) -> BudgetSpec:
    """What a command may spend on teachers, besides what task.yaml allows."""
    for option, value in (("--budget-usd", usd), ("--budget-tokens", tokens)):
        if value is not None and not value >= 0:  # nan too
            raise DistillError(f"{option} is {value}; give what this command may spend, 0 or more.")
    return BudgetSpec(usd=usd, tokens=tokens)


@app.command()
def tasks() -> None:
    """List the task folders."""
    home = Home.from_env()
    table = Table("task", "kind", "labels", "slices", "students", "teacher")
    for folder in find_tasks(home.tasks, home.accepted):
        try:
            task = folder.task
            students = ", ".join(task.students)
            numbers = str(len(task.labels)), str(len(folder.slice_keys()))
            teachers = ", ".join(one.model for one in task.teacher_specs)
            table.add_row(escape(folder.name), task.kind, *numbers, escape(students), escape(teachers))
        except InputError as error:
            table.add_row(escape(folder.name), "[red]malformed[/red]", "", "", "", f"{len(error.problems)} problems")
    out.print(table)


@app.command()
def check(task: TaskArgument = None) -> None:
    """Validate a task folder without running it. Exit code 2 where there is an error."""
    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        problems = check_folder(folder)
        for problem in problems:
            _show(problem)
        errors = sum(p.severity == "error" for p in problems)
        out.print(f"{folder.name}: {errors} errors, {len(problems) - errors} warnings")
        if errors:
            raise typer.Exit(2)


@app.command()
def status(task: TaskArgument = None, as_json: JsonOption = False) -> None:
    """What is fresh, stale or missing, and why."""
    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        found = State(folder, Lake(home.lake, home.reports)).all()
        table = Table("artifact", "state", "rows", "why")
        colours = {"fresh": "green", "stale": "yellow", "missing": "red", "waiting": "dim", "malformed": "red"}
        for s in found:
            why = "; ".join(s.why[:3]) + (f"; and {len(s.why) - 3} more" if len(s.why) > 3 else "")
            if s.record and s.record.extra.get("blocked"):
                why = f"did not pass {', '.join(s.record.extra['blocked'])}. {why}"
            if s.record and (lacking := s.record.extra.get("below_target")):
                why = f"{lacking} prompts below its target; `distill imagine --slice {s.partition}` asks again. {why}"
            rows = str(s.record.rows) if s.record else ""
            table.add_row(escape(s.name), f"[{colours[s.state]}]{s.state}[/]", rows, escape(why))
        out.print(table)
        counts = {state: sum(s.state == state for s in found) for state in colours}
        out.print(f"{folder.name}: " + ", ".join(f"{n} {state}" for state, n in counts.items()))
        if as_json:
            artifacts = [{"name": s.name, "state": s.state, "why": list(s.why)} for s in found]
            print(json.dumps({"task": folder.name, "counts": counts, "artifacts": artifacts}))


@app.command()
def run(
    task: TaskArgument = None,
    slices: Annotated[list[str] | None, typer.Option("--slice", help="Only this slice; may be repeated.")] = None,
    students: Annotated[list[str] | None, typer.Option("--student", help="Only this student; may be repeated.")] = None,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    as_json: JsonOption = False,
) -> None:
    """Materialize everything that is missing or stale, and show the result."""
    home = Home.from_env()
    started = time.perf_counter()
    with _errors():
        folder, cap = _open(home, task), _cap(budget_usd, budget_tokens)
        problems = check_folder(folder)
        if errors := [p for p in problems if p.severity == "error"]:
            raise InputError(errors)
        if problems:
            err.print(f"[yellow]{len(problems)} warnings[/yellow]: `distill check {folder.name}` shows them")
        chosen = _students(folder, students)
        keys = named_slices(folder, slices) if slices else None
        from distill_dagster import runs
        from distill_dagster.definitions import build

        with runs.open_instance(home) as instance:
            runs.sync(folder, instance)
            runner = runs.Runner(home, folder, instance, build(home), cap=cap)
            with _progress() as tell:
                outcome = runner.run(keys, chosen, tell)
        outcome.wall_s = time.perf_counter() - started
        if not outcome.runs and not outcome.blocked and not outcome.failed:
            out.print(f"[green]{folder.name} is up to date: nothing to do[/green] ({outcome.wall_s:.1f} s)")
        _show_failures(outcome)
        for student in chosen if keys is None else []:
            _show_report(home, folder, student)
        _end(outcome, as_json)


@app.command()
def refresh(
    task: TaskArgument = None,
    students: Annotated[list[str] | None, typer.Option("--student", help="Only this student; may be repeated.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Train however little changed.")] = False,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    as_json: JsonOption = False,
) -> None:
    """Bring a task up to date, as a scheduler would: by default every student that was trained before.

    Compares what is with what every artifact was made from, so no edit is lost whenever it was made. A student is
    trained anew only where more than `refresh.min_new_rows` rows of the dataset changed, or a setting of it.
    """
    home = Home.from_env()
    started = time.perf_counter()
    with _errors():
        folder, cap = _open(home, task), _cap(budget_usd, budget_tokens)
        chosen = _students(folder, students) if students else []
        from distill_dagster import runs
        from distill_dagster.definitions import build

        with runs.open_instance(home) as instance:
            runner = runs.Runner(home, folder, instance, build(home), cap=cap)
            with _progress() as tell:
                outcome = runs.refresh_task(runner, chosen, force, tell)
            outcome.wall_s = time.perf_counter() - started
            instance.report_runless_asset_event(runs.refresh_event(folder.name, outcome))
        for name, why in outcome.waiting.items():
            out.print(f"[dim]waits[/dim] {escape(name)}: {escape(why)}", soft_wrap=True)
        if not outcome.runs and not outcome.blocked and not outcome.failed:
            out.print(f"[green]{folder.name}: nothing to refresh[/green] ({outcome.wall_s:.1f} s)")
        _show_failures(outcome)
        _end(outcome, as_json)


def _show_failures(outcome: Outcome) -> None:
    for name, message in outcome.failed.items():
        err.print(f"[red]failed[/red] {escape(name)}: {escape(message)}", soft_wrap=True)
    for name, why in outcome.pending.items():
        out.print(f"[yellow]waits[/yellow] {escape(name)}: {escape(why)}", soft_wrap=True)
    for name, why in outcome.blocked.items():
        err.print(f"[yellow]held back[/yellow] {escape(name)}: {escape(why)}", soft_wrap=True)


def _end(outcome: Outcome, as_json: bool, **more: Any) -> None:
    waits = outcome.pending and not (outcome.failed or outcome.blocked)
    if waits:
        out.print(
            "[yellow]Nothing failed; answers are still to come.[/yellow] A provider may take a day for a batch. "
            "Its sensor goes on with them, or the next `distill refresh` or `distill run`.",
            soft_wrap=True,
        )
    if as_json:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(outcome.as_json() | more | {"peak_mb": round(peak, 1)}))
    if outcome.failed or outcome.blocked:
        raise typer.Exit(1)
    if waits:
        raise typer.Exit(WAITING)


@app.command()
def backfill(
    task: TaskArgument = None,
    slices: Annotated[list[str] | None, typer.Option("--slice", help="This slice; may be repeated.")] = None,
    first: Annotated[str | None, typer.Option("--from", help="From this slice on, in alphabetical order.")] = None,
    last: Annotated[str | None, typer.Option("--to", help="Up to this slice, included.")] = None,
    lacking: Annotated[
        Lacking | None, typer.Option("--which", help="Slices by their state; without any option: stale.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be asked; run nothing.")] = False,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    as_json: JsonOption = False,
) -> None:
    """Materialize slices up to scored_completions: named ones and ranges even if fresh, else those that lack something.

    `--which stale` takes every slice that is not fresh, `missing` what was never made, `failed` where the last run
    failed, `all` every slice. Waits for the end; the exit code tells whether all went well.
    """
    home = Home.from_env()
    started = time.perf_counter()
    with _errors():
        folder, cap = _open(home, task), _cap(budget_usd, budget_tokens)
        if sum((bool(slices), first is not None or last is not None, lacking is not None)) > 1:
            raise DistillError("Choose slices in one way: --slice, or --from and --to, or --which.")
        from distill_dagster import runs
        from distill_dagster.definitions import build

        with runs.open_instance(home) as instance:
            runs.sync(folder, instance)
            state = State(folder, Lake(home.lake, home.reports))
            if slices:
                keys = named_slices(folder, slices)
            elif first is not None or last is not None:
                keys = slice_range(folder, first, last)
            else:
                failed = runs.failed_slices(folder, instance) if lacking == "failed" else set()
                keys = lacking_slices(state, lacking or "stale", failed)
            if dry_run:
                _show_estimate(home, folder, state, keys, as_json, golden=False)
                return
            again = lacking in ("failed", "all") or bool(slices or first or last)
            with _progress() as tell:
                outcome = runs.Runner(home, folder, instance, build(home), cap=cap).backfill(keys, tell, again)
        outcome.wall_s = time.perf_counter() - started
        made = sum(len(partitions) for partitions in outcome.partitions.values())
        cached = outcome.teacher_calls_cached
        out.print(
            f"{folder.name}: {len(keys)} slices, {made} artifacts made, {outcome.teacher_calls} requests sent, "
            f"{cached} answered by the store ({outcome.wall_s:.1f} s)"
        )
        _show_failures(outcome)
        _end(outcome, as_json)


def _estimated(home: Home, folder: TaskFolder, keys: list[str], golden: bool) -> list[Estimate]:
    from distill_dagster.student.sentences import sentence_embedder
    from distill_dagster.teacher.estimate import estimate
    from resources.doors import CompletionStoreResource

    with CompletionStoreResource(path=str(home.store), url=store_url()).open() as store:
        return estimate(folder, store, keys, lambda spec: sentence_embedder(spec, home.models), golden=golden)


def _show_estimate(home: Home, folder: TaskFolder, state: State, keys: list[str], as_json: bool, golden: bool) -> None:
    """What materializing these slices would ask, slice by slice and teacher by teacher."""
    from distill_dagster.teacher.estimate import total

    found = _estimated(home, folder, keys, golden)
    # What is the same in every row would only make the others narrow.
    several = len({(one.teacher, one.purpose) for one in found}) > 1
    whom = ("teacher", "for") if several else ()
    table = Table("slice", "state", *whom, "prompts", "to send", "stored", "tokens at most", "USD at most")
    for one in found:
        now = state.status("scored_completions", one.slice).state if one.slice in keys else ""
        usd = "unknown" if one.usd is None else f"{one.usd:.4f}"
        counts = f"{one.prompts:,}", f"{one.calls:,}", f"{one.cached:,}", f"{one.tokens:,}", usd
        table.add_row(escape(one.slice), now, *((escape(one.teacher), one.purpose) if several else ()), *counts)
    out.print(table)
    whole = total(found)
    least = "at least " if any(spec.resolve_labels for spec in folder.task.teacher_specs) else ""
    usd = "unknown, since a price is" if whole["usd"] is None else f"${whole['usd']:.4f}"
    wall = "unknown" if whole["wall_s"] is None else f"{whole['wall_s']:.0f} s"
    out.print(
        f"{len(keys)} slices: {least}{whole['teacher_calls']} requests to send, {whole['teacher_calls_cached']} "
        f"answered by the store. At most {whole['tokens']:,} tokens; cost at most {usd}; time {wall}. Nothing was run.",
        soft_wrap=True,
    )
    if as_json:
        each = {"estimates": [asdict(one) for one in found]}
        print(json.dumps({"partitions": {"teacher_completions": keys}} | whole | each))


@app.command()
def estimate(
    task: TaskArgument = None,
    slices: Annotated[list[str] | None, typer.Option("--slice", help="Only this slice; may be repeated.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What bringing a task up to date would ask its teachers: requests, tokens, USD and time. Asks nothing.

    Tokens and USD are at most: every answer as long as it may be. USD are unknown where a price is.
    """
    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        state = State(folder, Lake(home.lake, home.reports))
        keys = named_slices(folder, slices) if slices else folder.slice_keys()
        _show_estimate(home, folder, state, keys, as_json, golden=not slices)


@app.command()
def ledger(
    task: TaskArgument = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="Write every row to this file instead.")] = None,
    as_json: JsonOption = False,
) -> None:
    """What was spent on teachers: requests, tokens and USD by month, teacher, purpose and state."""
    import duckdb

    from distill_dagster.tables import write_parquet
    from resources.doors import CompletionStoreResource

    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        with CompletionStoreResource(path=str(home.store), url=store_url()).open() as store:
            rows = store.ledger().filter(task=folder.name)
        if parquet is not None:
            write_parquet(rows, parquet, {})
            out.print(f"{rows.height} rows in {escape(str(parquet))}", soft_wrap=True)
        with duckdb.connect() as connection:
            connection.register("ledger", rows.to_arrow())
            found = connection.sql(_SPENT).fetchall()
        names = ("month", "teacher", "for", "state", "requests", "tokens", "usd")
        if parquet is None:
            table = Table(*names, title=f"{folder.name}: spent on teachers")
            for row in found:
                usd = "unknown" if row[-1] is None else f"{row[-1]:.4f}"
                table.add_row(*(escape(str(value)) for value in row[:4]), f"{row[4]:,}", f"{row[5]:,}", usd)
            out.print(table)
        if as_json:
            print(json.dumps({"task": folder.name, "ledger": [dict(zip(names, row, strict=True)) for row in found]}))


_SPENT = """
WITH taken AS (
    SELECT *, coalesce(tokens, worst_tokens) AS took,
        CASE state WHEN 'released' THEN 0 ELSE coalesce(usd, CASE state WHEN 'reserved' THEN worst_usd END) END AS cost
    FROM ledger
)
SELECT month, teacher, purpose, state, count(*), sum(took)::BIGINT,
    CASE WHEN count(cost) = count(*) THEN sum(cost) END
FROM taken GROUP BY ALL ORDER BY ALL
"""


@app.command()
def inbox(task: TaskArgument = None, as_json: JsonOption = False) -> None:
    """Take the new prompts that lie in the task's inbox: `inbox/<task>/*.jsonl`. Asks no teacher.

    Waits some seconds for a file that was just written. Exit code 1 where a file was rejected; the others are taken.
    """
    from distill_dagster.inbox import QUIET_S, take, waiting_s

    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        place = home.inbox / folder.name
        place.mkdir(parents=True, exist_ok=True)
        if wait := waiting_s(place):
            err.print(f"[dim]a file changed just now; waiting {wait:.0f} s[/dim]")
            time.sleep(min(wait, QUIET_S) + 0.1)
        taken = take(folder, place)
        for one in taken:
            colour = {"accepted": "green", "rejected": "red"}.get(one.state, "yellow")
            out.print(f"[{colour}]{one.state}[/{colour}] {escape(str(one))}", soft_wrap=True)
        accepted: dict[str, int] = {}
        for key, number in sorted((key, n) for one in taken for key, n in one.accepted.items()):
            accepted[key] = accepted.get(key, 0) + number
        new = sum(accepted.values())
        remark = f" `distill run {folder.name}` asks the teacher for them." if new else ""
        out.print(f"{folder.name}: {new} prompts accepted from {place}.{remark}", soft_wrap=True)
        if as_json:
            files = [{"file": one.file, "state": one.state, "why": one.why, **one.counts()} for one in taken]
            print(json.dumps({"task": folder.name, "accepted": accepted, "files": files}))
        if any(one.state == "rejected" for one in taken):
            raise typer.Exit(1)


@app.command()
def batches(
    task: TaskArgument = None,
    forget: Annotated[str | None, typer.Option(help="Wait for this one no more; it counts as paid for.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Look at the batches of a task at the provider, and collect those that ended. Submits nothing."""
    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        from distill_dagster.teacher.batches import give_up, look_after
        from distill_dagster.teacher.batchstore import BatchStore
        from distill_dagster.teacher.client import endpoint_of
        from resources.doors import CompletionStoreResource

        specs = [spec for spec in folder.task.teacher_specs if not spec.free]
        if not specs:
            raise DistillError(f"No teacher of {folder.name} is asked at a provider, so there are no batches.")
        with CompletionStoreResource(path=str(home.store), url=store_url()).open() as store:
            if forget is not None:
                if forget not in {one.submission for one in BatchStore(store).open(task=folder.name)}:
                    raise DistillError(f"{folder.name} has no open batch {forget!r}.")
                give_up(store, forget)
                out.print(f"forgotten: {forget}. It counts as paid for, and its requests may be asked anew.")
            found = [look_after(endpoint_of(spec), spec, store, folder.name) for spec in specs]
        done, left = [one for ended, _ in found for one in ended], [one for _, open_ in found for one in open_]
        for one in done:
            out.print(f"[green]collected[/green] {escape(str(one))}", soft_wrap=True)
        for waiting in left:
            id_ = waiting.batch_id or "(being submitted)"
            what = f"{waiting.origin}: batch {id_}, {waiting.requests} requests, since {waiting.created_at}"
            out.print(f"[yellow]under way[/yellow] {escape(what)} ({waiting.submission})", soft_wrap=True)
        answers = sum(one.answers for one in done)
        remark = f" `distill run {folder.name}` goes on with them." if done else ""
        out.print(f"{folder.name}: {answers} answers collected, {len(left)} batches under way.{remark}")
        if as_json:
            print(json.dumps({"task": folder.name, "collected": answers, "under_way": [s.batch_id for s in left]}))


@app.command("import")
def import_(
    task: Annotated[str, typer.Argument(help="The task.")],
    path: Annotated[Path, typer.Argument(help="CSV, JSONL, JSON, Parquet, or a folder of traces.")],
    target: Annotated[Target, typer.Option("--as", help="What the records become.")],
    slice_: Annotated[str | None, typer.Option("--slice", help="The slice of all of it.")] = None,
    slice_field: Annotated[str | None, typer.Option(help="The field that names the slice.")] = None,
    text_field: Annotated[str | None, typer.Option(help="The field of the prompt: a name or a dotted path.")] = None,
    label_field: Annotated[str | None, typer.Option(help="The field of the human's answer.")] = None,
    id_field: Annotated[str | None, typer.Option(help="The field of the id; by default `id`.")] = None,
    completion_field: Annotated[str | None, typer.Option(help="recorded: the field of the completion.")] = None,
    reasoning_field: Annotated[str | None, typer.Option(help="The field of the reasoning, where there is one.")] = None,
    name: Annotated[str | None, typer.Option(help="recorded: a name of its own; by default the file's.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be added; write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Import a file into a task, as seeds, labelled rows or recorded completions. The same file twice adds nothing.

    Seeds and recorded completions are masked and stored beside what came through the inbox; labelled rows are appended
    to the task's own files. Exit code 2 where a record cannot be used: nothing was written then.
    """
    from distill_dagster.importing import Options, import_file

    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        fields = (slice_, slice_field, text_field, label_field, id_field, completion_field, reasoning_field, name)
        done = import_file(folder, path, Options(target, *fields, dry_run), home.inbox / folder.name)
        would = "would be added" if dry_run else "added"
        for place, number in done.added.items():
            out.print(f"[green]{number} {would}[/green] to {escape(place)}", soft_wrap=True)
        for why, number in done.skipped.items():
            out.print(f"[yellow]{number} left out[/yellow]: {why}")
        if done.masked:
            out.print("masked: " + ", ".join(f"{number} {kind}" for kind, number in done.masked.items()))
        what = f"{done.count} of {done.records} records of {escape(done.file)}"
        out.print(f"{folder.name}: {what} {would}.", soft_wrap=True)
        if done.hint:
            out.print(escape(done.hint), soft_wrap=True)
        if as_json:
            found = {"file": done.file, "as": done.target, "records": done.records, "dry_run": dry_run}
            print(json.dumps({"task": folder.name, **found, "added": done.added, "skipped": done.skipped}))


@app.command()
def imagine(
    task: TaskArgument = None,
    slices: Annotated[list[str] | None, typer.Option("--slice", help="Only this slice; may be repeated.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Retire what was imagined before, and ask anew.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be asked; run nothing.")] = False,
    budget_usd: BudgetUsd = None,
    budget_tokens: BudgetTokens = None,
    as_json: JsonOption = False,
) -> None:
    """Let the teacher imagine prompts now, until every slice with a `target` has that many.

    `distill run` does so by itself; this asks for no answers, and asks again where a slice stayed below its target.
    Exit code 1 where something failed; a slice that stays below its target is no failure.
    """
    home = Home.from_env()
    started = time.perf_counter()
    with _errors():
        folder, cap = _open(home, task), _cap(budget_usd, budget_tokens)
        from distill_dagster.imagined import imagined_file, start_anew

        keys = _with_target(folder, slices)
        if dry_run:
            _show_imagined(folder, keys, fresh, as_json)
            return
        from distill_dagster import runs
        from distill_dagster.definitions import build

        with runs.open_instance(home) as instance:
            if fresh and folder.accepted is not None:
                for key in keys:
                    start_anew(imagined_file(folder.accepted, key))
            runs.sync(folder, instance)
            with _progress() as tell:
                outcome = runs.Runner(home, folder, instance, build(home), cap=cap).imagine(keys, tell)
        outcome.wall_s = time.perf_counter() - started
        found = _show_imagined(folder, keys, False, False)
        out.print(
            f"{folder.name}: {outcome.teacher_calls} requests sent, {outcome.teacher_calls_cached} answered by the "
            f"store ({outcome.wall_s:.1f} s). `distill run {folder.name}` asks for their answers."
        )
        _show_failures(outcome)
        _end(outcome, as_json, imagined=found)


def _with_target(folder: TaskFolder, slices: list[str] | None) -> list[str]:
    """The named slices, or all that have a target."""
    keys = named_slices(folder, slices) if slices else folder.slice_keys()
    found = [key for key in keys if folder.slice(key).target is not None]
    for key in keys if slices else []:
        if key not in found:
            remedy = "Add `target: N` with the number of prompts that it should have."
            raise InputError([Problem(folder.path / "slices" / f"{key}.yaml", "the slice has no target.", remedy)])
    if not found:
        raise DistillError(f"No slice of {folder.name} has a target. Add `target: N` to a file in slices/.")
    return found


def _show_imagined(folder: TaskFolder, keys: list[str], fresh: bool, as_json: bool) -> dict[str, dict[str, int]]:
    """What slices have and lack to their targets; `fresh`: as if what was imagined before were retired."""
    from distill_dagster.imagined import Imagination
    from distill_dagster.prompts.imagine import imagine_requests_needed

    table = Table("slice", "target", "imagined", "retired", "missing", "requests", "at most")
    found: dict[str, dict[str, int]] = {}
    for key in keys:
        slice_ = folder.slice(key)
        if fresh:
            before = slice_.imagination
            slice_ = slice_.with_imagined(Imagination(retired=before.retired + len(before.prompts)))
        need, imagined = imagine_requests_needed(folder.task, slice_), slice_.imagination
        found[key] = {
            "target": slice_.target or 0,
            "imagined": len(imagined.prompts),
            "retired": imagined.retired,
            "missing": need.prompts,
            "requests": need.requests,
            "at_most": need.at_most,
        }
        table.add_row(escape(key), *(str(number) for number in found[key].values()))
    out.print(table)
    if as_json:
        print(json.dumps({"imagined": found, "teacher_calls": sum(one["requests"] for one in found.values())}))
    return found


@app.command()
def filters(
    task: TaskArgument = None,
    dropped: Annotated[
        str | None, typer.Option("--dropped", help="Show rows that were dropped with this reason.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many of them.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """The filters of a task in the order of application, and how many rows each dropped from the dataset that is there.

    Runs nothing. docs/filters.md describes every filter.
    """
    from distill_dagster.curation.explain import dropped_rows
    from distill_dagster.stages.curation import filters_shown

    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        lake = Lake(home.lake, home.reports)
        now = State(folder, lake).status("filtered_dataset")
        extra = now.record.extra if now.record is not None else {}
        rows = filters_shown(folder.task.filters, extra.get("reasons", {}))
        table = Table("", "filter", "drop reason", "parameters", "dropped")
        for row in rows:
            count = "" if row["dropped"] is None else f"{row['dropped']:,}"
            cells = (row["order"], row["filter"], row["drop_reason"], row["parameters"])
            table.add_row(*(escape(str(cell)) for cell in cells), count)
        out.print(table)
        masked = f", {extra['masked_rows']:,} of them masked" if "masked_rows" in extra else ""
        made = "never made" if now.record is None else f"{now.state}, {now.record.rows:,} rows kept{masked}"
        out.print(f"{folder.name}: filtered_dataset is {made}")
        found = dropped_rows(lake, folder.name, dropped, limit) if dropped is not None else []
        for one in found:
            said = f"{one['drop_detail'] or ''} | {one['text']}"
            out.print(f"{one['prompt_id'][:12]} [dim]{escape(one['slice'])}[/dim] {escape(said[:200])}", soft_wrap=True)
        if as_json:
            more = {"rows": found} if dropped is not None else {}
            print(json.dumps({"task": folder.name, "state": now.state, "filters": rows} | more))


@app.command()
def explain(
    task: Annotated[str, typer.Argument(help="The task.")],
    prompt_id: Annotated[str, typer.Argument(help="The id of a prompt, or the beginning of one.")],
    as_json: JsonOption = False,
) -> None:
    """A row's whole story: its prompt, completions and scores, which filter dropped it and why, and where it went."""
    from distill_dagster.curation.explain import explained, show

    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        story = explained(folder, Lake(home.lake, home.reports), prompt_id.lower())
        if as_json:
            print(json.dumps(story))
        else:
            show(story, folder, out)


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar for the run in hand on a terminal; a line for each finished run elsewhere."""
    started = time.perf_counter()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
        bar = bars.add_task("", total=None)
        last: dict[str, Any] = {"what": "", "at": 0.0}

        def told(kind: str, what: str) -> None:
            if kind == "start":
                last["what"] = what
                bars.update(bar, description=escape(what), completed=0, total=None)
            elif kind == "pending":
                bars.console.print(f"[yellow]…[/yellow] {escape(what)} [dim]waits for its batch[/dim]")
            elif kind == "waiting":
                bars.console.print(f"[yellow]{escape(what)}: waiting for its end[/yellow]")
            else:
                mark = "[green]✓[/green]" if kind == "done" else "[red]✗[/red]"
                bars.console.print(f"{mark} {escape(what)} [dim]{time.perf_counter() - started:.0f} s[/dim]")

        def listen(what: str, done: int, total: int) -> None:
            bars.update(bar, description=escape(f"{last['what']}: {what}"), completed=done, total=total)
            if not err.is_terminal and (time.perf_counter() - last["at"] > 20 or done == total):
                last["at"] = time.perf_counter()
                err.print(f"  {escape(what)}: {done} of {total}", highlight=False)

        with progress.listening(listen):
            yield told


def _show_report(home: Home, folder: TaskFolder, student: str) -> bool:
    """The result table of one student and where its report lies."""
    path = home.report_folder(folder.name, student) / "metrics.json"
    if not path.exists():
        return False
    metrics = json.loads(path.read_text())
    rows = metrics["summary"]
    table = Table(title=f"{folder.name}, student {student}: {metrics['systems']['teacher']['n']} golden items")
    for name in rows[0]:
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    out.print(table)
    out.print(escape(metrics["verdict"]["text"]))
    if metrics.get("notice"):
        out.print(f"[dim]{escape(metrics['notice'])}[/dim]")
    out.print(f"Report: {path.with_name('report.html')}", soft_wrap=True)
    return True


@app.command()
def report(
    task: TaskArgument = None,
    students: Annotated[list[str] | None, typer.Option("--student", help="Only this student; may be repeated.")] = None,
) -> None:
    """Show the latest results and where the reports lie. Runs nothing."""
    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        chosen = _students(folder, students) if students else list(folder.task.students)
        if not _show_reports(home, folder, chosen):
            raise DistillError(f"{folder.name} has no report yet. Run `distill run {folder.name}`.")


def _show_reports(home: Home, folder: TaskFolder, students: list[str]) -> bool:
    """Every report that there is; whether there was one."""
    shown = [_show_report(home, folder, student) for student in students]
    return any(shown)


@app.command("data-docs")
def data_docs(task: TaskArgument = None, as_json: JsonOption = False) -> None:
    """Build Great Expectations' Data Docs of a task: every table, and what was expected of it. Runs nothing else."""
    from distill_dagster.datadocs import build_data_docs

    home = Home.from_env()
    with _errors():
        folder = _open(home, task)
        lake = Lake(home.lake, home.reports)
        tables = [(one.asset, one.partition) for one in State(folder, lake).all()]
        target = home.data_docs / folder.name
        with _progress():
            shown = build_data_docs(lake, folder.name, tables, target)
        if not shown:
            raise DistillError(f"{folder.name} has no table yet. Run `distill run {folder.name}`.")
    page = target / "index.html"
    typer.echo(json.dumps({"tables": shown, "page": str(page)}) if as_json else f"{shown} tables: {page}")


@app.command()
def env() -> None:
    """Print the variables that plain `dagster` and `dg` commands want: `eval "$(distill env)"`."""
    from distill_dagster import runs

    urls = {name: os.environ[name] for name in (POSTGRES, STORE) if os.environ.get(name)}
    runs.instance_folder(Home.from_env())
    for name in ("DAGSTER_HOME", "DISTILL_HOME", "DISTILL_TASKS"):
        if value := os.environ.get(name):
            print(f"export {name}={value!r}")
    for name, value in urls.items():
        # The shell has the value, and a password is not printed: the shell itself puts the driver in front.
        driver = f'="{DRIVER}://${{{name}#*://}}"' if value.startswith(("postgres://", "postgresql://")) else ""
        print(f"export {name}{driver}")


@app.command()
def ui(port: Annotated[int, typer.Option(help="The port on 127.0.0.1.")] = 3000) -> None:
    """Start the Dagster webserver and daemon on 127.0.0.1, on the instance that `distill run` uses."""
    from distill_dagster import runs

    home = Home.from_env()
    with _errors(), runs.open_instance(home) as instance:
        for folder in find_tasks(home.tasks, home.accepted):
            try:
                runs.sync(folder, instance)
            except InputError as error:
                for problem in error.problems:
                    _show(problem)
    command = [sys.executable, "-m", "dagster", "dev", "-h", "127.0.0.1", "-p", str(port)]
    command += ["-m", "distill_dagster.definitions"]
    out.print(f"The UI comes up on http://127.0.0.1:{port} in some ten seconds; Ctrl-C stops it.")
    process = subprocess.Popen(command, cwd=PROJECT)
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda number, _: process.send_signal(signal.SIGINT))
    raise typer.Exit(process.wait())
