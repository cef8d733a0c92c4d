"""`distill new` and `label`: a task folder from a table of rows, and labels that are written later."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Literal, get_args

import click
import typer
from rich.markup import escape

from distill_dagster.cli.console import build_table, err, out, print_json, print_problem, print_table, show_problems
from distill_dagster.cli.options import JsonOption, TaskName, open_task_folder
from distill_dagster.config import LABEL_KINDS, SLICE_KEY_PATTERN, TaskKind
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.paths import PROJECT_FOLDER, Home
from distill_dagster.new_task.columns import ColumnGuess, Columns, ColumnSummary, guess_columns, summarize_columns
from distill_dagster.new_task.plan import PART_FILES, SHEET_FILE, NewTaskOptions, TaskPlan, check_new_name, plan_task
from distill_dagster.new_task.split import PARTS, Part
from distill_dagster.new_task.task_yaml import EMBEDDED_TEACHER, PART_USES, TeacherChoice
from distill_dagster.tasks import TASK_FILE

_ORDER: tuple[Part, ...] = ("examples", "dev", "golden", "seeds")
_SHOWN_PROBLEMS = 10
SKIP_OPTION = "--skip-invalid"
_NONE = "-"
"""What a person types for no column."""


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
    teacher: Annotated[str, typer.Option(help="The teacher's model, such as `openai/gpt-4o-mini`.")] = EMBEDDED_TEACHER,
    api_base: Annotated[str | None, typer.Option(help="The address of your own server.")] = None,
    api_key_env: Annotated[str | None, typer.Option(help="The environment variable with the teacher's key.")] = None,
    student: Annotated[
        Literal["minilm", "smollm2"] | None, typer.Option(help="The student. Default: minilm for labels, else smollm2.")
    ] = None,
    mask: Annotated[
        bool, typer.Option("--mask/--no-mask", help="Replace secrets, mail addresses and phone numbers by their kind.")
    ] = True,
    skip_invalid: Annotated[
        bool, typer.Option(SKIP_OPTION, help="Leave out rows that cannot be used, instead of refusing the file.")
    ] = False,
    delimiter: Annotated[str | None, typer.Option(help="What separates the columns. Default: detected.")] = None,
    encoding: Annotated[str | None, typer.Option(help="The encoding of a text file. Default: detected.")] = None,
    sheet: Annotated[str | None, typer.Option(help="The sheet of a file with several. Default: the first.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; take what the columns suggest.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a task folder from a file of rows: settings, few-shot examples, dev, golden and slices.

    Labels are cleaned, and rows are divided by a seed, so that no text is in two parts. At a terminal it asks for what
    the columns do not show. Nothing is overwritten, and nothing is written if something is wrong. Asks no teacher.
    """
    from distill_dagster.intake.row_files import FileFormat, scan_records
    from distill_dagster.new_task.write import write_task

    home = Home.from_env()
    asks = not yes and not as_json and sys.stdin.isatty() and err.is_terminal
    with show_problems():
        check_new_name(home.tasks, task)
        if slice_ is not None and not SLICE_KEY_PATTERN.fullmatch(slice_):
            raise DistillError(f"{slice_!r} cannot be a slice. Use a name that matches {SLICE_KEY_PATTERN.pattern}.")
        if slice_ is not None and slice_field is not None:
            raise DistillError("Give --slice or --slice-field, not both.")
        found = scan_records(source, FileFormat(delimiter, encoding, sheet))
        if found.problems and not skip_invalid:
            if not asks or not _offer_to_skip(InputError(found.problems)):
                raise InputError(found.problems)
            skip_invalid = True
        for remark in found.remarks:
            err.print(f"[dim]{escape(remark)}[/dim]", soft_wrap=True)
        summaries = summarize_columns(found.records)
        given = Columns(tuple(text_field or ()), tuple(label_field or ()), slice_field, id_field, reasoning_field)
        kind = kind or ("classification" if label else None)
        guess = guess_columns(summaries, given, kind)
        if asks:
            guess = _ask_columns(summaries, guess, given, kind, label or [], one_slice=slice_ is not None)
        else:
            _require_sure(source, summaries, guess, label or [])
        assert guess.kind is not None
        sizes = {part: size for part, size in zip(PARTS, (golden, dev, examples, seeds), strict=True) if size}
        options = NewTaskOptions(
            name=task,
            kind=guess.kind,
            columns=guess.columns,
            label_map=_parse_map(map_ or []),
            labels=tuple(label or ()),
            sizes=sizes,
            seed=seed,
            slice=slice_,
            description=description,
            teacher=TeacherChoice(teacher, api_base, api_key_env),
            student=student,
            schema_path=_find_schema(home.tasks / task),
            mask=mask,
            skip_invalid=skip_invalid,
        )
        try:
            plan = plan_task(found.records, source, options, found.problems)
        except InputError as error:
            if not asks or skip_invalid or not _offer_to_skip(error):
                raise
            plan = plan_task(found.records, source, replace(options, skip_invalid=True), found.problems)
        _print_plan(plan, guess.columns)
        if dry_run:
            out.print(f"{task}: nothing is written (--dry-run).")
            problems: list[Problem] = []
        else:
            if asks and not typer.confirm(f"Write {home.tasks / task}?", default=True, err=True):
                raise typer.Exit(1)
            problems = write_task(plan, home.tasks, home.accepted)
            _print_next_steps(plan, home.tasks / task, problems)
        print_json(_build_json(plan, guess.columns, problems, dry_run))


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


def _find_schema(folder: Path) -> str | None:
    """The JSON schema of task.yaml, relative to a task folder inside the project."""
    schema = PROJECT_FOLDER / "docs" / "task.schema.json"
    if not schema.is_file() or not folder.is_relative_to(PROJECT_FOLDER):
        return None
    return Path(os.path.relpath(schema, folder)).as_posix()


def _parse_map(pairs: Sequence[str]) -> dict[str, str]:
    mapping: dict[str, str] = {}
    for pair in pairs:
        old, equals, new_name = pair.rpartition("=")
        if not equals or not old:
            raise DistillError(f"--map {pair!r} is not `old=new`. Write the label of the file, `=`, and its new name.")
        mapping[old] = new_name
    return mapping


def _offer_to_skip(error: InputError) -> bool:
    """Show rows that cannot be used, and ask whether to leave them out."""
    if not all(problem.line or SKIP_OPTION in problem.remedy for problem in error.problems):
        return False
    for problem in error.problems[:_SHOWN_PROBLEMS]:
        print_problem(problem)
    if (more := len(error.problems) - _SHOWN_PROBLEMS) > 0:
        err.print(f"… and {more} more.")
    return typer.confirm("Leave these rows out?", default=False, err=True)


def _require_sure(source: Path, summaries: Sequence[ColumnSummary], guess: ColumnGuess, labels: Sequence[str]) -> None:
    """Refuse to guess where nobody can be asked.

    Raises:
        InputError: a column or the kind is not clear.
    """
    known = ", ".join(summary.name for summary in summaries)
    problems = []
    if "text" in guess.unsure:
        remedy = f"Name it with --text-field. The columns are: {known}."
        problems.append(Problem(source, "which column is the text is not clear.", remedy))
    if "answer" in guess.unsure and not labels:
        candidates = f" Columns that may be: {', '.join(guess.answer_candidates)}." if guess.answer_candidates else ""
        remedy = "Name it with --label-field. Of a file without labels, name the labels with --label A --label B."
        problems.append(Problem(source, "no column is clearly the label or answer.", remedy + candidates))
    elif "kind" in guess.unsure and not labels:
        remedy = f"Name it with --kind: {', '.join(get_args(TaskKind))}."
        problems.append(Problem(source, "the kind of task is not clear.", remedy))
    if problems:
        raise InputError(problems)


def _ask_columns(
    summaries: Sequence[ColumnSummary],
    guess: ColumnGuess,
    given: Columns,
    kind: TaskKind | None,
    labels: list[str],
    one_slice: bool,
) -> ColumnGuess:
    """Ask for what the options do not name; what the columns suggest is the default. `labels` gets typed labels."""
    table = build_table("", "column", "values", "for example")
    for number, summary in enumerate(summaries, start=1):
        samples = escape(" | ".join(sample[:24] for sample in summary.samples))
        table.add_row(str(number), escape(summary.name), f"{summary.distinct} different", samples)
    err.print(table)
    err.print("[dim]Answer with a number or a name. Enter takes what is in brackets.[/dim]")
    columns = guess.columns
    if not given.text and not columns.messages:
        columns = replace(columns, text=_ask(summaries, "Which column is the text? Several: 2,3", columns.text))
    chosen = replace(given, text=columns.text, messages=columns.messages)
    found = guess_columns(summaries, chosen, kind or guess.kind)
    if kind is None:
        kinds = click.Choice(get_args(TaskKind))
        kind = typer.prompt("What kind of task is it?", found.kind or "classification", type=kinds, err=True)
        found = guess_columns(summaries, chosen, kind)
    columns = found.columns
    if not given.answer and not columns.messages:
        what = "label" if kind in LABEL_KINDS else "answer"
        columns = replace(columns, answer=_ask(summaries, f"Which column is the {what}? {_NONE}: none", columns.answer))
        if not columns.answer and kind in LABEL_KINDS and not labels:
            typed = typer.prompt("Which labels are there? Divide them by commas", err=True)
            labels += [name.strip() for name in typed.split(",") if name.strip()]
    if not given.slice and not one_slice and (columns.slice or found.slice_candidates):
        default = (columns.slice,) if columns.slice else ()
        question = f"Which column says where a row comes from? {_NONE}: one slice for all"
        columns = replace(columns, slice=next(iter(_ask(summaries, question, default)), None))
    return ColumnGuess(columns, kind)


def _ask(summaries: Sequence[ColumnSummary], question: str, default: tuple[str, ...]) -> tuple[str, ...]:
    """Ask for columns until all that is typed is one."""
    names = [summary.name for summary in summaries]
    while True:
        typed = str(typer.prompt(question, ",".join(default) or _NONE, err=True)).strip()
        if typed == _NONE:
            return ()
        if typed == ",".join(default):
            return default
        if typed in names:
            return (typed,)
        parts = [part.strip() for part in typed.split(",")]
        found = [names[int(p) - 1] if p.isdecimal() and 0 < int(p) <= len(names) else p for p in parts]
        if all(name in names for name in found):
            return tuple(found)
        err.print(f"There is no column {escape(repr(typed))}.")


def _print_plan(plan: TaskPlan, columns: Columns) -> None:
    roles = {
        "text": " + ".join(columns.text) or columns.messages,
        "label" if plan.kind in LABEL_KINDS else "answer": ", ".join(columns.answer),
        "slice": columns.slice,
        "id": columns.id,
        "reasoning": columns.reasoning,
    }
    used = ", ".join(f"{role}: {name}" for role, name in roles.items() if name)
    out.print(f"{count_noun(plan.records, 'row')}, kind {plan.kind}. Columns: {escape(used)}.", soft_wrap=True)
    spellings: dict[str | None, list[str]] = {}
    for old, (name, number) in plan.renamed.items():
        spellings.setdefault(name, []).append(f"{old!r} ({count_noun(number, 'row')})")
    for name, olds in spellings.items():
        what = f"label {name!r}, also written" if name else "no label"
        more = f" and {len(olds) - 8} more" if len(olds) > 8 else ""
        written = ", ".join(olds[:8])
        out.print(f"[yellow]cleaned[/yellow] {escape(what)}: {escape(written)}{more}", soft_wrap=True)
    for reason, number in plan.left_out.items():
        out.print(f"[yellow]{number} left out[/yellow]: {reason}", soft_wrap=True)
    if plan.masked:
        masked = ", ".join(f"{number} {kind}" for kind, number in plan.masked.items())
        out.print(f"masked: {masked}. --no-mask keeps them.")
    if len(plan.labels) > 1:
        table = build_table("label", *_ORDER, "all", whole=("label",))
        for name, counts in plan.labels.items():
            table.add_row(escape(name), *(str(counts[part]) for part in _ORDER), str(sum(counts.values())))
        print_table(table)
    for part in _ORDER:
        place = PART_FILES.get(part) or count_noun(len(plan.slices), "slice")
        place = SHEET_FILE if plan.to_label and part != "seeds" else place
        out.print(f"{plan.parts[part]:>6} {part:<9} {place}: {PART_USES[part]}", soft_wrap=True, highlight=False)
    for note in plan.notes:
        out.print(f"[yellow]note[/yellow] {escape(note)}", soft_wrap=True)


def _print_next_steps(plan: TaskPlan, folder: Path, problems: Sequence[Problem]) -> None:
    out.print(f"[green]{plan.name} is written[/green] to {escape(str(folder))}. Next:", soft_wrap=True)
    steps = []
    if plan.to_label:
        answer = "label" if plan.kind in LABEL_KINDS else "answer"
        steps.append(f"Write the {answer} of each of the {plan.to_label} rows into {folder / SHEET_FILE}.")
        steps.append(f"distill label {plan.name}       # takes them into examples, dev and golden")
    else:
        for problem in problems:
            print_problem(problem)
    if plan.kind in LABEL_KINDS:
        steps.append(f"Describe the labels in {folder / TASK_FILE}: the teacher reads the descriptions.")
    if any(problem.severity == "error" for problem in problems) and not plan.to_label:
        steps.append("Fix what is named above.")
    steps.append(f"distill check {plan.name}       # names every mistake; runs nothing")
    steps.append(f"distill estimate {plan.name}    # requests, cost and time")
    steps.append(f"distill run {plan.name}         # asks the teacher, trains the student, writes the report")
    steps.append("In a running UI: Deployment > Code locations > Reload. Otherwise `distill ui` starts it.")
    for number, step in enumerate(steps, start=1):
        out.print(f"  {number}. {escape(step)}", soft_wrap=True, highlight=False)


def _build_json(plan: TaskPlan, columns: Columns, problems: Sequence[Problem], dry_run: bool) -> dict[str, object]:
    return {
        "task": plan.name,
        "kind": plan.kind,
        "dry_run": dry_run,
        "records": plan.records,
        "columns": {name: value for name, value in asdict(columns).items() if value},
        "parts": plan.parts,
        "labels": {name: sum(counts.values()) for name, counts in plan.labels.items() if name},
        "slices": plan.slices,
        "left_out": plan.left_out,
        "to_label": plan.to_label,
        "files": sorted(plan.files),
        "problems": [str(problem) for problem in problems],
    }
