"""A table on disk, and the task that is planned from it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from distill_dagster.config import TaskKind
from distill_dagster.core.errors import Problem
from distill_dagster.intake.row_files import read_records
from distill_dagster.new_task.columns import Columns, guess_columns, summarize_columns
from distill_dagster.new_task.options import NewTaskOptions
from distill_dagster.new_task.plan import TaskPlan, plan_task
from distill_dagster.new_task.write import write_task
from distill_dagster.pipeline.open_task import build_task_folder
from distill_dagster.tasks import TaskFolder
from tests.support.task import jsonl

TOPICS = {
    "billing": "the invoice {n} charges me twice for seat {m}",
    "delivery": "parcel {n} never came to flat {m}",
    "login": "the page {m} rejects the password of user {n}",
}


def build_rows(count: int, **more: Any) -> list[dict[str, Any]]:
    """Labelled rows with different texts; labels take turns."""
    names = list(TOPICS)
    return [
        {"id": f"t{n}", "text": TOPICS[names[n % 3]].format(n=n, m=n % 7), "label": names[n % 3]} | more
        for n in range(count)
    ]


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write rows as CSV or JSONL, as the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as handle:
            writer = csv.DictWriter(handle, list(dict.fromkeys(name for row in rows for name in row)))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(jsonl(rows), encoding="utf-8")
    return path


def plan_table(
    path: Path, rows: list[dict[str, Any]], kind: TaskKind | None = None, columns: Columns | None = None, **options: Any
) -> TaskPlan:
    """Plan a task from rows, with the columns that their names suggest."""
    write_table(path, rows)
    records = read_records(path)
    guess = guess_columns(summarize_columns(records), columns or Columns(), kind)
    assert guess.kind is not None
    return plan_task(records, path, NewTaskOptions("mail", guess.kind, guess.columns, **options))


def write_plan(root: Path, plan: TaskPlan) -> tuple[TaskFolder, list[Problem]]:
    """Write a plan below a folder, and what the check says about it."""
    problems = write_task(plan, root / "tasks", root / "accepted")
    return build_task_folder(root / "tasks" / plan.name, root / "accepted" / plan.name), problems


def read_parts(folder: TaskFolder) -> dict[str, list[str]]:
    """The texts of every part."""
    rows = {"golden": folder.golden, "dev": folder.dev, "examples": folder.examples}
    parts = {part: [row.text for row in rows[part]] for part in rows}
    keys = folder.list_slice_keys()
    return parts | {"seeds": [seed.text for key in keys for seed in folder.read_slice(key).seeds]}


def read_yaml(plan: TaskPlan, name: str = "task.yaml") -> dict[str, Any]:
    """A planned YAML file."""
    value: dict[str, Any] = yaml.safe_load(plan.files[name])
    return value
