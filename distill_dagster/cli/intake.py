"""`distill inbox`, `batches` and `import`: take in prompts, answers of provider batches, and files."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from distill_dagster.cli.console import err, out, print_json, print_problem, show_problems
from distill_dagster.cli.options import JsonOption, QuietOption, TaskArgument, open_task_folder
from distill_dagster.core.database_urls import get_store_url
from distill_dagster.core.errors import DistillError
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.paths import Home
from distill_dagster.core.problem_groups import group_problems
from distill_dagster.tasks import ImportTarget


def inbox(task: TaskArgument = None, as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Take new prompts from the task's inbox, `inbox/<task>/*.jsonl`, and from served requests. Asks no teacher.

    Waits some seconds if a file has just been written. Exits with code 1 if a file is rejected; the other files are
    still taken.
    """
    from distill_dagster.intake.inbox import QUIET_S, compute_wait_s, process_inbox
    from distill_dagster.intake.logged_prompts import take_logged_requests
    from distill_dagster.pipeline.served_traffic import read_shadow_shares

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        place = home.inbox / folder.name
        place.mkdir(parents=True, exist_ok=True)
        if wait := compute_wait_s(place):
            err.print(f"[dim]a file has just changed; waiting {wait:.0f} s[/dim]")
            time.sleep(min(wait, QUIET_S) + 0.1)
        summaries = process_inbox(folder, place)
        shares = read_shadow_shares(home.releases, folder.name)
        served = take_logged_requests(folder, place, home.requests / folder.name, shares)
        summaries += [served] if served is not None else []
        for summary in summaries:
            colour = {"accepted": "green", "rejected": "red"}.get(summary.state, "yellow")
            out.print(f"[{colour}]{summary.state}[/{colour}] {escape(str(summary))}", soft_wrap=True)
        accepted: dict[str, int] = {}
        for key, number in sorted((key, n) for summary in summaries for key, n in summary.accepted.items()):
            accepted[key] = accepted.get(key, 0) + number
        new = sum(accepted.values())
        remark = f" `distill run {folder.name}` asks the teacher for them." if new else ""
        places = f"{place}{' and from served requests' if served is not None else ''}"
        out.print(f"{folder.name}: {count_noun(new, 'prompt')} accepted from {places}.{remark}", soft_wrap=True)
        files = [{"file": s.file, "state": s.state, "why": s.why, **s.get_counts()} for s in summaries]
        print_json({"task": folder.name, "accepted": accepted, "files": files})
        if any(summary.state == "rejected" for summary in summaries):
            raise typer.Exit(1)


def batches(
    task: TaskArgument = None,
    forget: Annotated[str | None, typer.Option(help="Stop waiting for this batch. It counts as paid for.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Check the task's batches at the provider and collect those that have ended. Submits nothing."""
    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        from distill_dagster.teacher.completions.batch_store import BatchStore
        from distill_dagster.teacher.completions.batches import collect_batches, forget_batch
        from distill_dagster.teacher.completions.store import open_store
        from distill_dagster.teacher.providers.client import resolve_endpoint

        specs = [spec for spec in folder.task.teacher_specs if not spec.is_free]
        with open_store(home.store, get_store_url()) as store:
            if not specs and not BatchStore(store).list_open(task=folder.name):
                raise DistillError(f"{folder.name} has no batches: all its teachers are embedded or replay teachers.")
            if forget is not None:
                if forget not in {batch.submission for batch in BatchStore(store).list_open(task=folder.name)}:
                    raise DistillError(f"{folder.name} has no open batch {forget!r}.")
                forget_batch(store, forget, [resolve_endpoint(spec) for spec in specs])
                out.print(f"forgotten: {forget}. It counts as paid for, and its requests can be sent again.")
            by_teacher = [collect_batches(resolve_endpoint(spec), spec, store, folder.name) for spec in specs]
            all_open = BatchStore(store).list_open(task=folder.name)
        collected = [batch for ended, _ in by_teacher for batch in ended]
        under_way = [batch for _, still_open in by_teacher for batch in still_open]
        for done in collected:
            out.print(f"[green]collected[/green] {escape(str(done))}", soft_wrap=True)
        for batch in under_way:
            batch_id = batch.batch_id or "(being submitted)"
            what = (
                f"{batch.origin}: batch {batch_id}, {count_noun(batch.requests, 'request')}, since {batch.created_at}"
            )
            out.print(f"[yellow]under way[/yellow] {escape(what)} ({batch.submission})", soft_wrap=True)
        left_over = [batch for batch in all_open if batch not in under_way]
        for batch in left_over:
            requests = count_noun(batch.requests, "request")
            what = f"{batch.origin}: batch {batch.batch_id}, {requests}, since {batch.created_at}"
            remedy = f"or give it up: `distill batches {folder.name} --forget {batch.submission}`."
            out.print(
                f"[yellow]left over[/yellow] {escape(what)}. task.yaml no longer has its teacher, so it cannot be "
                f"collected. Restore the teacher to collect it, {escape(remedy)}",
                soft_wrap=True,
            )
        under_way += left_over
        answers = sum(done.answers for done in collected)
        remark = f" `distill run {folder.name}` continues with them." if collected else ""
        counts = (
            f"{count_noun(answers, 'answer')} collected, {count_noun(len(under_way), 'batch', 'batches')} under way"
        )
        out.print(f"{folder.name}: {counts}.{remark}", soft_wrap=True, highlight=False)
        batch_ids = [batch.batch_id for batch in under_way]
        print_json({"task": folder.name, "collected": answers, "under_way": batch_ids})


def import_(
    task: Annotated[str, typer.Argument(help="The task.")],
    path: Annotated[Path, typer.Argument(help="CSV, XLSX, JSONL, JSON, Parquet, or a folder of traces.")],
    target: Annotated[ImportTarget, typer.Option("--as", help="What the records become.")],
    slice_: Annotated[str | None, typer.Option("--slice", help="The slice of all records.")] = None,
    slice_field: Annotated[str | None, typer.Option(help="The field that names the slice.")] = None,
    slugify: Annotated[
        bool, typer.Option("--slugify", help="Make slices of any names: `Phone note` becomes `phone-note`.")
    ] = False,
    text_field: Annotated[
        list[str] | None,
        typer.Option(help="The field of the prompt, as a name or dotted path. Can be repeated: the texts are joined."),
    ] = None,
    label_field: Annotated[str | None, typer.Option(help="The field of the human answer.")] = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", help="Rename a label: `--map 'Billing =billing'`. `old=` leaves out its records."),
    ] = None,
    id_field: Annotated[str | None, typer.Option(help="The field of the id. Default: `id`.")] = None,
    completion_field: Annotated[str | None, typer.Option(help="For recorded: the field of the completion.")] = None,
    reasoning_field: Annotated[str | None, typer.Option(help="The field of the reasoning, if there is one.")] = None,
    soft_labels_field: Annotated[
        str | None, typer.Option(help="For recorded: the field of the labels' probabilities. Default: `probs`.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="For recorded: the name of the recording. Default: the file name.")
    ] = None,
    delimiter: Annotated[str | None, typer.Option(help="The separator of a CSV file. Default: detected.")] = None,
    encoding: Annotated[
        str | None, typer.Option(help="The encoding of a text file, such as cp1252. Default: detected.")
    ] = None,
    sheet: Annotated[str | None, typer.Option(help="The sheet of an XLSX file. Default: the first with rows.")] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out records that cannot be used, and say which.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be added and write nothing.")] = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Import a file as seeds, labelled rows or recorded completions. Importing it again adds nothing.

    Seeds and recorded completions are masked and stored next to the prompts from the inbox. Labelled rows are
    appended to the task's own files. Exits with code 2 if a record cannot be used; then nothing is written.
    """
    from distill_dagster.intake.import_files import import_file
    from distill_dagster.intake.import_options import ImportOptions
    from distill_dagster.intake.row_files import FileFormat

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        options = ImportOptions(
            target,
            slice=slice_,
            slice_field=slice_field,
            text_field=text_field or None,
            label_field=label_field,
            id_field=id_field,
            completion_field=completion_field,
            reasoning_field=reasoning_field,
            soft_labels_field=soft_labels_field,
            name=name,
            dry_run=dry_run,
            label_map=parse_label_map(map_ or []),
            skip_invalid=skip_invalid,
            slugify=slugify,
            file_format=FileFormat("\t" if delimiter in ("\\t", "tab") else delimiter, encoding, sheet),
        )
        done = import_file(folder, path, options, home.inbox / folder.name)
        for problem in group_problems(done.problems):
            print_problem(replace(problem, severity="warning"))
        for remark in done.remarks:
            out.print(escape(remark), soft_wrap=True)
        would = "would be added" if dry_run else "added"
        for place, number in done.added.items():
            out.print(f"[green]{number} {would}[/green] to {escape(place)}", soft_wrap=True)
        for why, number in done.skipped.items():
            out.print(f"[yellow]{number} left out[/yellow]: {why}")
        if done.masked:
            out.print("masked: " + ", ".join(f"{number} {kind}" for kind, number in done.masked.items()))
        what = f"{done.count} of {count_noun(done.records, 'record')} of {escape(done.file)}"
        out.print(f"{folder.name}: {what} {would}.", soft_wrap=True)
        if done.hint and done.count:
            out.print(escape(done.hint), soft_wrap=True)
        facts = {"file": done.file, "as": done.target, "records": done.records, "dry_run": dry_run}
        counts = {"added": done.added, "skipped": done.skipped, "remarks": done.remarks}
        problems = [problem.to_json() for problem in done.problems]
        print_json({"task": folder.name, **facts, **counts, "problems": problems})


def parse_label_map(pairs: list[str]) -> dict[str, str]:
    """The labels of `--map old=new`. A label of the file may contain `=`.

    Raises:
        DistillError: there is no `=`.
    """
    mapping = {}
    for pair in pairs:
        old, sign, new = pair.rpartition("=")
        if not sign or not old:
            raise DistillError(f"--map {pair!r} is not `old=new`. Write the label of the file, `=`, and its new name.")
        mapping[old] = new.strip()
    return mapping
