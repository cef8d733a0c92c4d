"""What `distill new` and `copy` print: the plan of a task folder, and the next steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from distill_dagster.cli.console import build_table, out, print_problem, print_table
from distill_dagster.cli.output import print_next
from distill_dagster.config import LABEL_KINDS
from distill_dagster.core.errors import Problem
from distill_dagster.core.formatting import count_noun
from distill_dagster.new_task.columns import Columns
from distill_dagster.new_task.plan import PART_FILES, SHEET_FILE, TaskPlan
from distill_dagster.new_task.split import Part
from distill_dagster.new_task.task_yaml import PART_USES
from distill_dagster.tasks import TASK_FILE, TaskFolder

_ORDER: tuple[Part, ...] = ("examples", "dev", "golden", "seeds")


def print_plan(plan: TaskPlan, columns: Columns) -> None:
    """Print what a plan does with the rows of the file."""
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


def print_next_steps(plan: TaskPlan, folder: Path, problems: Sequence[Problem], address: str | None) -> None:
    """Print what a person does with the new task. `address` is that of the UI that has loaded it."""
    out.print(f"[green]{plan.name} is written[/green] to {escape(str(folder))}. Next:", soft_wrap=True)
    steps = []
    if plan.to_label:
        answer = "label" if plan.kind in LABEL_KINDS else "answer"
        steps.append(f"Write the {answer} of its {plan.to_label} rows into {folder / SHEET_FILE}, in any spreadsheet.")
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
    in_ui = "`distill ui` shows it; in a running UI: Deployment > Code locations > Reload."
    steps.append(f"The UI on {address} shows it." if address else in_ui)
    for number, step in enumerate(steps, start=1):
        out.print(f"  {number}. {escape(step)}", soft_wrap=True, highlight=False)


def print_copy(folder: TaskFolder, problems: Sequence[Problem], address: str | None) -> None:
    """Print what a copied task is, and what a person does next. `address` is that of the UI that has loaded it."""
    teachers = ", ".join(name for name, _ in folder.task.list_teachers())
    out.print(f"[green]{folder.name} is written[/green] to {escape(str(folder.path))}.", soft_wrap=True)
    out.print(f"Teacher: {escape(teachers)}. Students: {escape(', '.join(folder.task.students))}.", soft_wrap=True)
    for problem in problems:
        print_problem(problem)
    if address:
        out.print(f"The UI on {address} shows it.", soft_wrap=True)
    print_next(f"distill run {folder.name}", "asks the teacher, trains the student and writes the report.")


def build_plan_json(plan: TaskPlan, columns: Columns, problems: Sequence[Problem], dry_run: bool) -> dict[str, object]:
    """The JSON object of the command."""
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
