"""Decide what a new task folder contains. Nothing is written here."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from distill_dagster.config import TaskKind
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.slugs import slugify
from distill_dagster.intake.inbox import sanitize_file_name
from distill_dagster.intake.row_files import SourceRecord
from distill_dagster.new_task.answers import render_answer
from distill_dagster.new_task.checked_rows import CheckedRows, check_rows
from distill_dagster.new_task.choose_parts import ChosenParts, choose_parts, get_group
from distill_dagster.new_task.folder_files import DEFAULT_SLICE, FolderRow, render_rows, render_sheet, render_slice
from distill_dagster.new_task.options import NewTaskOptions
from distill_dagster.new_task.rows import TableRow, name_place
from distill_dagster.new_task.slice_names import MAX_SLICES, name_slices
from distill_dagster.new_task.split import LEAST, PARTS, Part
from distill_dagster.new_task.tally import Tally
from distill_dagster.new_task.task_yaml import TaskSketch, render_task_yaml
from distill_dagster.tasks import DEV_FILE, EXAMPLES_FILE, GOLDEN_FILE, TASK_FILE

SHEET_FILE = "to_label.csv"
PART_FILES: dict[Part, str] = {"golden": GOLDEN_FILE, "dev": DEV_FILE, "examples": EXAMPLES_FILE}
PartRows = dict[Part, list[FolderRow]]


@dataclass(frozen=True)
class TaskPlan:
    """A task folder as it will be written, and what happened to the rows of the file.

    Attributes:
        files: by relative path, the content.
        parts: rows of each part.
        labels: for each label, its rows by part; of kinds without labels one entry with an empty name.
        left_out: rows that are in no part, by reason.
        renamed: for each changed spelling of a label, the label and the number of rows.
        to_label: rows in to_label.csv that a person has to label.
        slices: seeds of each slice.
        notes: what a person should know or do.
    """

    name: str
    kind: TaskKind
    records: int
    files: dict[str, str]
    parts: dict[Part, int]
    labels: dict[str, dict[Part, int]]
    left_out: dict[str, int]
    renamed: dict[str, tuple[str | None, int]]
    masked: dict[str, int]
    slices: dict[str, int]
    to_label: int = 0
    notes: tuple[str, ...] = ()


def plan_task(
    records: Sequence[SourceRecord], path: Path, options: NewTaskOptions, unreadable: Sequence[Problem] = ()
) -> TaskPlan:
    """Decide every file of a new task.

    Args:
        records: the readable records of the file at `path`.
        unreadable: problems with the others.

    Raises:
        InputError: rows cannot be used and `skip_invalid` is not set, or too few rows are left.
    """
    tally = Tally(options.skip_invalid)
    checked = check_rows(records, path, options, unreadable, tally)
    chosen = choose_parts(checked, path, options, tally)
    named = _name_slices(chosen, path, options)
    source = sanitize_file_name(path)
    rows = _place_rows(chosen, named, source, options, tally)
    unlabelled = not any(row.row.answer is not None for part in LEAST for row in rows[part])
    sketch = _build_sketch(rows, checked, chosen.labels, source, options, unlabelled)
    files = {TASK_FILE: render_task_yaml(sketch)}
    answer = "label" if options.has_labels else "answer"
    if unlabelled:
        files[SHEET_FILE] = _render_sheet(rows, chosen, answer, checked.reasoning)
    else:
        files |= {name: render_rows(rows[part], answer) for part, name in PART_FILES.items()}
        _note_sizes(rows, options.name, tally)
    slices: dict[str, list[FolderRow]] = {}
    for seed in rows["seeds"]:
        slices.setdefault(seed.slice, []).append(seed)
    slices = dict(sorted(slices.items()))
    for slice_, seeds in slices.items():
        files[f"slices/{slice_}.yaml"] = render_slice(_describe_slice(slice_, named, source, options), seeds)
    return TaskPlan(
        name=options.name,
        kind=options.kind,
        records=len(records) + len(unreadable),
        files=files,
        parts={part: len(found) for part, found in rows.items()},
        labels={label: _count_rows(rows, label if options.has_labels else None) for label in chosen.labels or [""]},
        left_out={reason: number for reason, number in tally.left_out.items() if number},
        renamed=checked.renamed,
        masked=dict(sorted(checked.masked.items())),
        slices={slice_: len(seeds) for slice_, seeds in slices.items()},
        to_label=sum(len(rows[part]) for part in LEAST) if unlabelled else 0,
        notes=tuple(dict.fromkeys(tally.notes)),
    )


def _name_slices(chosen: ChosenParts, path: Path, options: NewTaskOptions) -> dict[str, str]:
    """By a value of the slice column, the slice."""
    named = name_slices(row.slice for rows in chosen.units.values() for row in rows if row.slice)
    if (count := len(set(named.values()))) > MAX_SLICES:
        message = f"{options.columns.slice!r} has {count} different values."
        remedy = f"A slice is a partition, and more than {MAX_SLICES} are too many. Name another --slice-field."
        raise InputError([Problem(path, message, remedy)])
    return named


def _place_rows(
    chosen: ChosenParts, named: Mapping[str, str], source: str, options: NewTaskOptions, tally: Tally
) -> PartRows:
    """The rows of each part, with their ids and slices."""
    ids = Counter(row.id for rows in chosen.units.values() for row in rows if row.id)
    stem = source.rsplit(".", 1)[0] or "row"
    default_slice = options.slice or slugify(Path(source).stem) or DEFAULT_SLICE
    placed: PartRows = {part: [] for part in PARTS}
    for key, rows in chosen.units.items():
        part = chosen.parts.get(key)
        if part is None:
            if key in chosen.parts:
                tally.left_out["rows beyond the wanted number of seeds"] += len(rows)
            continue
        if part != "seeds":
            tally.left_out["near-duplicates of rows in examples, dev or golden"] += len(rows) - 1
            rows = rows[:1]
        for row in rows:
            id_ = row.id if row.id and ids[row.id] == 1 else f"{stem}-{hash_content(row.key)[:10]}"
            place = f"{source}:{row.record.line}" if row.record.line else f"{source} {name_place(row)}"
            placed[part].append(FolderRow(row, id_, named.get(row.slice or "", default_slice), place))
    return placed


def _render_sheet(rows: PartRows, chosen: ChosenParts, answer: str, reasoning: bool) -> str:
    """The rows that a person has to label, in turns of their parts."""
    order = {key: number for number, key in enumerate(chosen.parts)}
    to_label = [(part, row) for part in LEAST for row in rows[part]]
    to_label.sort(key=lambda pair: order[pair[1].row.key])
    return render_sheet(to_label, answer, reasoning)


def _count_rows(rows: PartRows, label: str | None) -> dict[Part, int]:
    """The rows of each part with a label, or all."""
    return {part: sum(1 for row in found if label is None or row.row.answer == label) for part, found in rows.items()}


def _describe_slice(slice_: str, named: Mapping[str, str], source: str, options: NewTaskOptions) -> str:
    values = sorted(value for value, key in named.items() if key == slice_)
    if not values:
        return f"Rows of {source}."
    return f"Rows of {source} whose {options.columns.slice} is {' or '.join(values[:5])}."


def _build_sketch(
    placed: PartRows,
    checked: CheckedRows,
    labels: Sequence[str],
    source: str,
    options: NewTaskOptions,
    unlabelled: bool,
) -> TaskSketch:
    rows = [row.row for part in placed.values() for row in part]
    counts = Counter(row.answer for row in rows if options.has_labels)
    by_label = Counter(get_group(row.row, options) for row in placed["examples"])
    answered = [row for row in rows if row.answer is not None]
    answers = [len(f"{render_answer(row.answer)}{row.reasoning or ''}".encode()) for row in answered]
    return TaskSketch(
        name=options.name,
        source=source,
        kind=options.kind,
        parts={part: 0 if unlabelled and part != "seeds" else len(placed[part]) for part in PARTS},
        seed=options.seed,
        description=options.description,
        labels=[(label, counts[label]) for label in labels],
        answer_schema=checked.schema,
        tools=checked.tools,
        reasoning=checked.reasoning,
        fewest_examples=min(by_label.values(), default=1),
        text_bytes=_measure([_measure_prompt(row) for row in rows]),
        answer_bytes=_measure(answers or [200]),
        teacher=options.teacher,
        student=options.student,
        schema_path=options.schema_path,
        has_references=any(row.row.answer is not None for row in placed["seeds"]),
    )


def _note_sizes(rows: PartRows, name: str, tally: Tally) -> None:
    golden = len(rows["golden"])
    if golden < 100:
        points = 100 * 0.98 / math.sqrt(golden)
        counted = count_noun(golden, "row")
        tally.notes.append(f"golden has {counted}, so a score is known to about {points:.0f} points. More are better.")
    if len(rows["seeds"]) < 50:
        prompts = count_noun(len(rows["seeds"]), "prompt")
        remedy = f"Add unlabelled ones: `distill import {name} FILE --as seeds`."
        tally.notes.append(f"The slices have {prompts}, which is little to learn from. {remedy}")


def _measure_prompt(row: TableRow) -> int:
    """The length of a prompt in bytes, of which a token has about three in every script."""
    texts = [turn["content"] for turn in row.messages] if row.messages else [row.text]
    return sum(len(text.encode()) for text in texts)


def _measure(lengths: Sequence[int]) -> tuple[float, float]:
    """Mean and 95th percentile."""
    ordered = sorted(lengths)
    return statistics.fmean(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
