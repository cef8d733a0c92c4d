"""Check the rows of a new task's file: their columns, labels and answers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distill_dagster.config import Task
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.intake.row_files import SourceRecord
from distill_dagster.kinds import InvalidAnswerError, Question, get_kind
from distill_dagster.new_task.answers import infer_schema, infer_tools
from distill_dagster.new_task.columns import find_unknown_columns, get_fields
from distill_dagster.new_task.labels import clean_labels
from distill_dagster.new_task.options import NewTaskOptions
from distill_dagster.new_task.rows import SKIP_REMEDY, TableRow, read_rows_of_table
from distill_dagster.new_task.tally import Tally


@dataclass(frozen=True)
class CheckedRows:
    """The usable rows of a table, their answers in canonical form, and what the answers say of the task.

    Attributes:
        labels: of kinds with labels, the most frequent first.
        renamed: for each changed spelling of a label, the label and the number of rows.
        reasoning: whether answers have reasoning.
        schema: of an extraction, the JSON schema of the answers.
        tools: of tool calls, the functions.
        masked: what was masked, by kind.
    """

    rows: list[TableRow]
    labels: list[str]
    renamed: dict[str, tuple[str | None, int]]
    reasoning: bool
    schema: dict[str, Any] | None
    tools: list[dict[str, Any]]
    masked: Counter[str]


def check_rows(
    records: Sequence[SourceRecord], path: Path, options: NewTaskOptions, unreadable: Sequence[Problem], tally: Tally
) -> CheckedRows:
    """Check the records of the file at `path`, and add what is left out to the tally.

    Args:
        unreadable: problems with records that could not be read.

    Raises:
        InputError: columns or labels do not fit, or rows cannot be used and the tally does not skip them.
    """
    _check_columns(records, path, options)
    table = read_rows_of_table(records, options.columns, options.kind, options.mask)
    tally.left_out["empty rows"] += table.blank
    tally.refuse([*unreadable, *table.problems])
    rows, renamed = _clean_labels(table.rows, path, options)
    reasoned = options.kind == "math" and any(row.reasoning for row in rows)
    reasoning = options.columns.reasoning is not None or reasoned
    if reasoning:
        rows = [replace(row, answer=None if row.reasoning is None else row.answer) for row in rows]
    schema = infer_schema(row.answer for row in rows) if options.kind == "extraction" else None
    tools = _infer_tools(records, rows) if options.kind == "tool_call" else []
    labels = _list_labels(rows, path, options, tally) if options.has_labels else []
    if not options.has_labels:
        rows = _check_answers(rows, _build_probe(path, options, schema, tools), options, tally)
    return CheckedRows(rows, labels, renamed, reasoning, schema, tools, table.masked)


def _check_columns(records: Sequence[SourceRecord], path: Path, options: NewTaskOptions) -> None:
    columns = options.columns
    problems = []
    for name in find_unknown_columns(columns, records):
        known = ", ".join(dict.fromkeys(name for record in records[:100] for name in get_fields(record)))
        problems.append(Problem(path, f"no record has the field {name!r}.", f"The fields are: {known}."))
    if options.has_labels and len(columns.answer) > 1:
        problems.append(Problem(path, "a label is in one column.", "Give --label-field once."))
    if twice := {*columns.text} & {*columns.answer, columns.slice}:
        message = f"{', '.join(map(repr, sorted(map(str, twice))))} is the text and something else."
        problems.append(Problem(path, message, "Name another column for one of the two."))
    if not columns.text and not columns.messages:
        problems.append(Problem(path, "no column is the text.", "Name it with --text-field."))
    if problems:
        raise InputError(problems)


def _clean_labels(
    rows: list[TableRow], path: Path, options: NewTaskOptions
) -> tuple[list[TableRow], dict[str, tuple[str | None, int]]]:
    """The rows with clean labels, and what was renamed."""
    if not options.has_labels:
        return rows, {}
    clean = clean_labels([row.answer for row in rows], options.label_map)
    if clean.unused:
        known = ", ".join(sorted({str(row.answer) for row in rows if row.answer})[:20])
        message = f"--map names labels that no row has: {', '.join(map(repr, clean.unused))}."
        raise InputError([Problem(path, message, f"The labels are: {known}.")])
    return [replace(row, answer=label) for row, label in zip(rows, clean.labels, strict=True)], clean.renamed


def _infer_tools(records: Sequence[SourceRecord], rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    offered = [tool for record in records for tool in _read_tools(get_fields(record).get("tools"))]
    return infer_tools([row.answer for row in rows], offered)


def _read_tools(value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    return value if isinstance(value, list) else []


def _list_labels(rows: Sequence[TableRow], path: Path, options: NewTaskOptions, tally: Tally) -> list[str]:
    found = Counter(row.answer for row in rows if row.answer is not None)
    labels = sorted(found, key=lambda name: (-found[name], name))
    if options.labels:
        given = list(dict.fromkeys(" ".join(name.split()) for name in options.labels if name.strip()))
        if others := [label for label in labels if label not in given]:
            message = f"labels that --label does not name: {', '.join(map(repr, others[:20]))}."
            remedy = "Name all of them, or map them with --map 'old=new'."
            raise InputError([Problem(path, message, remedy)])
        labels = given
    if len(labels) < 2:
        raise InputError([_make_label_problem(labels, path, options)])
    if len(labels) > 20 and 2 * len(labels) > sum(found.values()) > 0:
        message = f"{options.columns.answer[0]!r} has {len(labels)} different values in {found.total()} rows."
        remedy = "These are no labels: name another --label-field, or another --kind such as generation."
        raise InputError([Problem(path, message, remedy)])
    if all(label.lstrip("-").isdecimal() for label in labels):
        tally.notes.append("The labels are numbers. Give them names that a model understands: --map 0=refund …")
    return labels


def _make_label_problem(labels: Sequence[str], path: Path, options: NewTaskOptions) -> Problem:
    if labels:
        message, remedy = f"the only label is {labels[0]!r}.", "A task needs two labels or more."
    else:
        message = "no row has a label."
        remedy = "Name the column with --label-field, or the labels with --label A --label B, to label rows later."
    return Problem(path, message, remedy, field=next(iter(options.columns.answer), None))


def _check_answers(rows: list[TableRow], probe: Task, options: NewTaskOptions, tally: Tally) -> list[TableRow]:
    """The rows with their answers in canonical form. A row whose answer does not fit the kind is a problem."""
    kind = get_kind(probe)
    kept: list[TableRow] = []
    problems: list[Problem] = []
    for row in rows:
        if row.answer is not None:
            try:
                row = replace(row, answer=kind.canonicalize(row.answer, Question(row.text)))
            except InvalidAnswerError as why:
                field_name = next(iter(options.columns.answer), None)
                problems.append(row.record.make_problem(f"{str(why).rstrip('.')}.", SKIP_REMEDY, field_name))
                continue
        kept.append(row)
    tally.refuse(problems)
    return kept


def _build_probe(
    path: Path, options: NewTaskOptions, schema: dict[str, Any] | None, tools: list[dict[str, Any]]
) -> Task:
    """A task with the same answers, to read answers with."""
    settings: dict[str, Any] = {
        "kind": options.kind,
        "description": "-",
        "teacher": "-",
        "students": {"s": {"model": "-", "architecture": "causal_lm"}},
    }
    if schema is not None:
        settings["answer_schema"] = schema if schema.get("type") == "object" else {"type": "object"}
    if options.kind == "tool_call":
        if not tools:
            problem = Problem(path, "no record calls or offers a tool.", "Name the calls with --label-field.")
            raise InputError([problem])
        settings["tools"] = tools
    return Task.model_validate(settings)
