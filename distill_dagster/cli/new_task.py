"""`distill new`, `copy` and `label`: a task folder from a table or another task, and labels written later."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.markup import escape

from distill_dagster.cli.console import err, out, print_json, show_problems
from distill_dagster.cli.intake import parse_label_map
from distill_dagster.cli.options import JsonOption, TaskName, open_task_folder
from distill_dagster.config import SLICE_KEY_PATTERN, TaskKind
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.pipeline.open_task import build_task_folder


def new(
    task: Annotated[str, typer.Argument(help="The name of the new task, such as `ticket_mail`.")],
    source: Annotated[
        Path, typer.Option("--from", help="CSV, XLSX, JSONL, JSON or Parquet; labelled, partly labelled or unlabelled.")
    ],
    kind: Annotated[TaskKind | None, typer.Option(help="The kind of task. Default: found from the columns.")] = None,
    text_field: Annotated[
        list[str] | None, typer.Option(help="The column of the text. Give several to join them.")
    ] = None,
    label_field: Annotated[
        list[str] | None, typer.Option(help="The column of the label or answer. Several are the fields of an object.")
    ] = None,
    slice_field: Annotated[str | None, typer.Option(help="The column that divides the rows into slices.")] = None,
    slice_: Annotated[
        str | None, typer.Option("--slice", help="The slice of all rows. Default: the name of the file.")
    ] = None,
    id_field: Annotated[str | None, typer.Option(help="The column of the id.")] = None,
    reasoning_field: Annotated[str | None, typer.Option(help="The column of the reasoning, if there is one.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="A label of a file that has no labels yet. Give it for each label.")
    ] = None,
    map_: Annotated[
        list[str] | None, typer.Option("--map", help="Rename a label: `--map 'Billing =billing'`. `old=` removes it.")
    ] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="Rows for few-shot examples.")] = None,
    dev: Annotated[int | None, typer.Option(min=1, help="Rows for choices of prompt, epochs and threshold.")] = None,
    golden: Annotated[int | None, typer.Option(min=1, help="Rows that are held out for the report.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Most prompts in the slices. Default: 2000.")] = None,
    seed: Annotated[int, typer.Option(help="Another seed divides the rows in another way.")] = 0,
    description: Annotated[str | None, typer.Option(help="What the task does, in one sentence.")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="The teacher's model, such as `openai/gpt-4o-mini`. Default: the embedded one.")
    ] = None,
    api_base: Annotated[str | None, typer.Option(help="The address of your own server.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="The environment variable with the teacher's key.")] = None,
    student: Annotated[
        Literal["minilm", "smollm2"] | None, typer.Option(help="The student. Default: minilm for labels, else smollm2.")
    ] = None,
    mask: Annotated[
        bool, typer.Option("--mask/--no-mask", help="Replace secrets, mail addresses and phone numbers by their kind.")
    ] = True,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Leave out rows that cannot be used, instead of refusing the file.")
    ] = False,
    delimiter: Annotated[str | None, typer.Option(help="What separates the columns. Default: detected.")] = None,
    encoding: Annotated[str | None, typer.Option(help="The encoding of a text file. Default: detected.")] = None,
    sheet: Annotated[str | None, typer.Option(help="The sheet of a file with several. Default: the first.")] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="The file has no labels or answers: write a sheet to fill in.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; take what the columns suggest.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a task folder from a file of rows: settings, few-shot examples, dev, golden and slices.

    Labels are cleaned, and rows are divided by a seed, so that no text is in two parts. At a terminal it asks for what
    the columns do not show. Nothing is overwritten, and nothing is written if something is wrong. Asks no teacher.
    """
    from distill_dagster.cli.new_task_output import build_plan_json, print_next_steps, print_plan
    from distill_dagster.cli.new_task_questions import ask_columns, offer_to_skip, require_sure_columns
    from distill_dagster.intake.row_files import FileFormat, scan_records
    from distill_dagster.new_task.columns import Columns, guess_columns, summarize_columns
    from distill_dagster.new_task.options import NewTaskOptions, check_new_name
    from distill_dagster.new_task.plan import plan_task
    from distill_dagster.new_task.split import PARTS
    from distill_dagster.new_task.task_yaml import EMBEDDED_TEACHER, TeacherChoice
    from distill_dagster.new_task.write import write_task

    home = Home.from_env()
    asks = not yes and not as_json and sys.stdin.isatty() and err.is_terminal
    with show_problems():
        check_new_name(home.tasks, task)
        if slice_ is not None and not SLICE_KEY_PATTERN.fullmatch(slice_):
            raise DistillError(f"{slice_!r} cannot be a slice. Use a name that matches {SLICE_KEY_PATTERN.pattern}.")
        if slice_ is not None and slice_field is not None:
            raise DistillError("Give --slice or --slice-field, not both.")
        with _show_waiting(f"reading {source.name}"):
            separator = "	" if delimiter in ("\t", "tab") else delimiter
            found = scan_records(source, FileFormat(separator, encoding, sheet))
        if found.problems and not skip_invalid:
            if not asks or not offer_to_skip(InputError(found.problems)):
                raise InputError(found.problems)
            skip_invalid = True
        for remark in found.remarks:
            err.print(f"[dim]{escape(remark)}[/dim]", soft_wrap=True)
        summaries = summarize_columns(found.records)
        given = Columns(tuple(text_field or ()), tuple(label_field or ()), slice_field, id_field, reasoning_field)
        labels = list(label or [])
        kind = kind or ("classification" if labels else None)
        guess = guess_columns(summaries, given, kind)
        if asks:
            guess = ask_columns(summaries, guess, given, kind, labels, one_slice=slice_ is not None)
        else:
            require_sure_columns(source, summaries, guess, has_answers=not labels and not unlabelled)
        if unlabelled:
            guess = replace(guess, columns=replace(guess.columns, answer=()))
        assert guess.kind is not None
        sizes = {part: size for part, size in zip(PARTS, (golden, dev, examples, seeds), strict=True) if size}
        options = NewTaskOptions(
            name=task,
            kind=guess.kind,
            columns=guess.columns,
            label_map=parse_label_map(map_ or []),
            labels=tuple(labels),
            sizes=sizes,
            seed=seed,
            slice=slice_,
            description=description,
            teacher=TeacherChoice(teacher or EMBEDDED_TEACHER, api_base, api_key_env),
            student=student,
            schema_path=_find_schema(home.tasks / task),
            mask=mask,
            skip_invalid=skip_invalid,
        )
        try:
            with _show_waiting(f"masking and dividing {count_noun(len(found.records), 'row')}"):
                plan = plan_task(found.records, source, options, found.problems)
        except InputError as error:
            if not asks or skip_invalid or not offer_to_skip(error):
                raise
            plan = plan_task(found.records, source, replace(options, skip_invalid=True), found.problems)
        print_plan(plan, guess.columns)
        if dry_run:
            out.print(f"{task}: nothing is written (--dry-run).")
            problems: list[Problem] = []
        else:
            if asks and not typer.confirm(f"Write {home.tasks / task}?", default=True, err=True):
                raise typer.Exit(1)
            problems = write_task(plan, home.tasks, home.accepted)
            print_next_steps(plan, home.tasks / task, problems, _load_in_ui(home, task))
        print_json(build_plan_json(plan, guess.columns, problems, dry_run))


def copy(
    task: TaskName,
    new_name: Annotated[str, typer.Argument(help="The name of the copy.")],
    teacher: Annotated[
        str | None, typer.Option(help="Keep only this one of the task's `teachers`; give its name in task.yaml.")
    ] = None,
    fields: Annotated[
        list[str] | None,
        typer.Option("--set", help="Set a field of task.yaml: `--set teacher.few_shot.draws=1`. Can be repeated."),
    ] = None,
    imagined: Annotated[
        bool, typer.Option("--imagined/--no-imagined", help="Whether to copy prompts that a model imagined.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Copy a task folder under another name, to compare teachers or settings.

    Comments in task.yaml stay. Nothing is overwritten. Answers that the store has are not asked for again.
    """
    from distill_dagster.cli.new_task_output import print_copy
    from distill_dagster.new_task.copy_task import CopyChanges, copy_task

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        changes = CopyChanges(teacher, _parse_fields(fields or []), imagined)
        problems = copy_task(folder, home.tasks, new_name, changes, home.inbox / folder.name)
        new = build_task_folder(home.tasks / new_name, home.accepted / new_name)
        print_copy(new, problems, _load_in_ui(home, new_name))
        print_json({"task": new.name, "copied_from": folder.name, "problems": [str(problem) for problem in problems]})


def _parse_fields(assignments: list[str]) -> dict[str, Any]:
    """The fields and values of `--set FIELD=VALUE`. A value is YAML."""
    fields: dict[str, Any] = {}
    for assignment in assignments:
        name, sign, text = assignment.partition("=")
        if not sign or not all(part.strip() for part in name.split(".")):
            raise DistillError(f"--set {assignment} names no field. Write it as `--set teacher.few_shot.draws=1`.")
        try:
            fields[name.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise DistillError(f"--set {assignment}: the value is not YAML. Quote it.") from error
    return fields


def label(
    task: TaskName,
    sheet: Annotated[
        Path | None, typer.Argument(help="The file with labels. Default: to_label.csv of the task.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Take the labels that you wrote into to_label.csv: its rows go to examples, dev and golden.

    `distill new` writes this sheet for a file without labels. Rows that have no label yet stay there; taking the sheet
    again adds the rows that have one since.
    """
    from distill_dagster.new_task.labelling import take_labels

    home = Home.from_env()
    with show_problems():
        folder = open_task_folder(home, task)
        done = take_labels(folder, sheet, home.inbox / folder.name)
        for name, number in done.added.items():
            out.print(f"[green]{number} added[/green] to {escape(name)}", soft_wrap=True)
        rest = f", {count_noun(done.unlabelled, 'row')} without a label" if done.unlabelled else ""
        out.print(f"{folder.name}: {count_noun(sum(done.added.values()), 'row')} added{rest}.")
        out.print(f"Next: `distill check {folder.name}`.")
        print_json({"task": folder.name, "added": done.added, "unlabelled": done.unlabelled})


def _show_waiting(what: str) -> AbstractContextManager[object]:
    """A line on a terminal while something takes its time."""
    return err.status(f"[dim]{escape(what)} …[/dim]") if err.is_terminal else nullcontext()


def _load_in_ui(home: Home, task: str) -> str | None:
    """Make a running UI load the new task. Returns its address."""
    from distill_dagster.orchestration.ui_reload import find_running_ui, load_task_in_ui

    address = find_running_ui(home)
    if address is None:
        return None
    err.print(f"[dim]the UI on {address} loads the new task …[/dim]")
    return load_task_in_ui(home, build_task_folder(home.tasks / task, home.accepted / task))


def _find_schema(folder: Path) -> str | None:
    """The JSON schema of task.yaml, relative to a task folder inside the project."""
    schema = PROJECT_FOLDER / "docs" / "task.schema.json"
    if not schema.is_file() or not folder.is_relative_to(PROJECT_FOLDER):
        return None
    return Path(os.path.relpath(schema, folder)).as_posix()
