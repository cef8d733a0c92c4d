"""Take the labels that a person wrote into a task's to_label.csv."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill_dagster.core.errors import InputError, Problem
from distill_dagster.intake.import_files import import_file
from distill_dagster.intake.import_options import ImportOptions
from distill_dagster.intake.row_files import SourceRecord, read_records
from distill_dagster.new_task.columns import get_fields, is_missing
from distill_dagster.new_task.labels import clean_labels
from distill_dagster.new_task.plan import PART_FILES, SHEET_FILE
from distill_dagster.new_task.split import Part
from distill_dagster.tasks import ImportTarget, TaskFolder

_TARGETS: dict[Part, ImportTarget] = {"golden": "golden", "dev": "dev", "examples": "examples"}


@dataclass(frozen=True)
class LabelledRows:
    """What was taken from a sheet.

    Attributes:
        added: new rows by file.
        unlabelled: rows of the sheet without a label.
    """

    added: dict[str, int] = field(default_factory=dict)
    unlabelled: int = 0


def take_labels(folder: TaskFolder, sheet: Path | None, inbox: Path) -> LabelledRows:
    """Append the labelled rows of a sheet to the files that its column `part` names.

    Taking a sheet again adds only the rows that have been labelled since.

    Raises:
        InputError: a label is not one of the task, or the sheet cannot be read. Nothing was written.
    """
    path = sheet or folder.path / SHEET_FILE
    answer = "label" if folder.task.has_labels else "answer"
    records = read_records(path)
    labelled = [record for record in records if not is_missing(get_fields(record).get(answer))]
    problems = [_make_part_problem(record) for record in labelled if get_fields(record).get("part") not in PART_FILES]
    if problems:
        raise InputError(problems)
    rows = [_build_row(record, answer) for record in labelled]
    if folder.task.has_labels:
        known = {name: name for name in folder.task.label_names}
        clean = clean_labels([str(row[answer]) for row in rows], known | {name.casefold(): name for name in known})
        rows = [row | {answer: label} for row, label in zip(rows, clean.labels, strict=True)]
    for dry_run in (True, False):  # all files are checked before one is written
        added = _import_rows(folder, path, labelled, rows, dry_run, inbox)
    return LabelledRows(added, len(records) - len(labelled))


def _build_row(record: SourceRecord, answer: str) -> dict[str, Any]:
    fields = get_fields(record)
    names = ("id", "text", answer, "reasoning", "slice")
    return {name: fields[name] for name in names if not is_missing(fields.get(name))}


def _make_part_problem(record: SourceRecord) -> Problem:
    remedy = f"Write one of {', '.join(PART_FILES)}."
    return record.make_problem("the row does not say where it belongs.", remedy, "part")


def _import_rows(
    folder: TaskFolder,
    sheet: Path,
    records: Sequence[SourceRecord],
    rows: Sequence[dict[str, Any]],
    dry_run: bool,
    inbox: Path,
) -> dict[str, int]:
    added: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for part, target in _TARGETS.items():
            lines: dict[int, dict[str, Any]] = {}
            for number, (record, row) in enumerate(zip(records, rows, strict=True), start=1):
                if get_fields(record)["part"] == part:
                    lines[record.line or number] = row
            if not lines:
                continue
            copy = Path(temporary) / f"{sheet.stem}.jsonl"
            # Each row is in the line that it has in the sheet, so that a problem names that line.
            copy.write_text(
                "".join(f"{json.dumps(lines[n]) if n in lines else ''}\n" for n in range(1, max(lines) + 1)),
                encoding="utf-8",
            )
            try:
                done = import_file(folder, copy, ImportOptions(target, dry_run=dry_run), inbox)
            except InputError as error:
                named = [replace(p, file=sheet) if p.file == copy else p for p in error.problems]
                raise InputError(named) from None
            added |= done.added
    return added
