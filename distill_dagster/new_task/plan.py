"""Decide what a new task folder contains. Nothing is written here."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill_dagster.config import LABEL_KINDS, TASK_NAME_PATTERN, Task, TaskKind
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.hashing import hash_content, hash_strings, to_canonical_json
from distill_dagster.core.slugs import slugify
from distill_dagster.intake.inbox import sanitize_file_name
from distill_dagster.intake.row_files import SourceRecord
from distill_dagster.kinds import InvalidAnswerError, Question, get_kind
from distill_dagster.new_task.answers import infer_schema, infer_tools
from distill_dagster.new_task.columns import Columns, find_unknown_columns, get_fields
from distill_dagster.new_task.folder_files import DEFAULT_SLICE, FolderRow, render_rows, render_sheet, render_slice
from distill_dagster.new_task.labels import clean_labels
from distill_dagster.new_task.rows import SKIP_REMEDY, TableRow, TableRows, read_rows_of_table
from distill_dagster.new_task.slice_names import MAX_SLICES, name_slices
from distill_dagster.new_task.split import (
    LEAST,
    MOST,
    MOST_TO_LABEL,
    PARTS,
    Part,
    SplitUnit,
    choose_sizes,
    split_units,
)
from distill_dagster.new_task.task_yaml import TaskSketch, TeacherChoice, render_task_yaml
from distill_dagster.new_task.units import build_units, find_conflicts
from distill_dagster.tasks import DEV_FILE, EXAMPLES_FILE, GOLDEN_FILE, TASK_FILE

SHEET_FILE = "to_label.csv"
PART_FILES: dict[Part, str] = {"golden": GOLDEN_FILE, "dev": DEV_FILE, "examples": EXAMPLES_FILE}
_NAMED_CONFLICTS, _NAMED_LABELS = 3, 20
"""How many texts with several answers, and rare labels, are named before the rest is counted."""
_SHEET_PATTERN: tuple[Part, ...] = ("examples", "golden", "dev", "golden", "examples", "golden", "dev", "golden")
"""The parts of rows to label, in turns: whoever labels only the first rows has all parts."""


@dataclass(frozen=True)
class NewTaskOptions:
    """What a person chose for a new task.

    Attributes:
        label_map: by a spelling in the file, the label it means.
        labels: the labels of a table that has none yet.
        sizes: rows of parts, where not the default.
        slice: the slice of all rows, or of rows whose slice column is empty.
        schema_path: the JSON schema of task.yaml for editors, relative to the task folder.
        mask: replace secrets and personal data by their kind.
        skip_invalid: leave out rows that cannot be used, instead of refusing the file.
    """

    name: str
    kind: TaskKind
    columns: Columns
    label_map: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    sizes: Mapping[Part, int] = field(default_factory=dict)
    seed: int = 0
    slice: str | None = None
    description: str | None = None
    teacher: TeacherChoice = field(default_factory=TeacherChoice)
    student: str | None = None
    schema_path: str | None = None
    mask: bool = True
    skip_invalid: bool = False


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


def check_new_name(tasks: Path, name: str) -> None:
    """Check that a task of this name can be made.

    Raises:
        InputError: the name is not allowed, or taken.
    """
    if not TASK_NAME_PATTERN.fullmatch(name):
        remedy = f"Use a name that matches {TASK_NAME_PATTERN.pattern}, such as {_suggest_name(name)!r}."
        raise InputError([Problem(tasks, f"{name!r} cannot be a task name.", remedy)])
    taken = [path.name for path in tasks.iterdir()] if tasks.is_dir() else []
    if twin := next((other for other in taken if other.casefold() == name), None):
        remedy = "Choose another name, or remove the folder. Nothing is overwritten."
        raise InputError([Problem(tasks / twin, "there is a task of this name.", remedy)])


def _suggest_name(name: str) -> str:
    plain = slugify(name).replace("-", "_")
    return (plain if TASK_NAME_PATTERN.fullmatch(plain) else f"task_{plain}".rstrip("_"))[:40]


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
    return _Planner(records, path, options, unreadable).plan()


class _Planner:
    """The steps of `plan_task`, which share rows, counts and notes."""

    def __init__(
        self, records: Sequence[SourceRecord], path: Path, options: NewTaskOptions, unreadable: Sequence[Problem]
    ) -> None:
        self.records, self.path, self.options = records, path, options
        self.unreadable = list(unreadable)
        self.source = sanitize_file_name(path)
        self.has_labels = options.kind in LABEL_KINDS
        self.left_out: Counter[str] = Counter()
        self.notes: list[str] = []
        self.renamed: dict[str, tuple[str | None, int]] = {}

    def plan(self) -> TaskPlan:
        """Run all steps."""
        options = self.options
        self._check_columns()
        table = read_rows_of_table(self.records, options.columns, options.kind, options.mask)
        self.left_out["empty rows"] += table.blank
        self._refuse_problems([*self.unreadable, *table.problems])
        rows = self._clean_labels(table)
        reasoned = options.kind == "math" and any(row.reasoning for row in rows)
        self.reasoning = options.columns.reasoning is not None or reasoned
        if self.reasoning:
            rows = [replace(row, answer=None if row.reasoning is None else row.answer) for row in rows]
        self.schema = infer_schema(row.answer for row in rows) if options.kind == "extraction" else None
        self.tools = self._infer_tools(rows) if options.kind == "tool_call" else []
        self.labels = self._list_labels(rows)
        rows = self._check_answers(rows)
        self.answered = any(row.answer is not None for row in rows)
        units = build_units(rows, self.options.kind)
        self.left_out["duplicates"] += len(rows) - sum(len(members) for members in units.values())
        self._note_conflicts(list(find_conflicts(rows, self.options.kind)))
        parts = self._split(units)
        return self._assemble(units, parts, table)

    def _check_columns(self) -> None:
        columns = self.options.columns
        problems = []
        for name in find_unknown_columns(columns, self.records):
            known = ", ".join(dict.fromkeys(name for record in self.records[:100] for name in get_fields(record)))
            problems.append(Problem(self.path, f"no record has the field {name!r}.", f"The fields are: {known}."))
        if self.has_labels and len(columns.answer) > 1:
            problems.append(Problem(self.path, "a label is in one column.", "Give --label-field once."))
        if twice := {*columns.text} & {*columns.answer, columns.slice}:
            message = f"{', '.join(map(repr, sorted(map(str, twice))))} is the text and something else."
            problems.append(Problem(self.path, message, "Name another column for one of the two."))
        if not columns.text and not columns.messages:
            problems.append(Problem(self.path, "no column is the text.", "Name it with --text-field."))
        if problems:
            raise InputError(problems)

    def _refuse_problems(self, problems: Sequence[Problem]) -> None:
        """Refuse rows that cannot be used, or count them."""
        if problems and not self.options.skip_invalid:
            raise InputError(problems)
        self.left_out["invalid rows"] += len(problems)

    def _clean_labels(self, table: TableRows) -> list[TableRow]:
        if not self.has_labels:
            return table.rows
        clean = clean_labels([row.answer for row in table.rows], self.options.label_map)
        self.renamed = clean.renamed
        if clean.unused:
            known = ", ".join(sorted({str(row.answer) for row in table.rows if row.answer})[:20])
            message = f"--map names labels that no row has: {', '.join(map(repr, clean.unused))}."
            raise InputError([Problem(self.path, message, f"The labels are: {known}.")])
        return [replace(row, answer=label) for row, label in zip(table.rows, clean.labels, strict=True)]

    def _infer_tools(self, rows: Sequence[TableRow]) -> list[dict[str, Any]]:
        offered = [tool for record in self.records for tool in _read_tools(get_fields(record).get("tools"))]
        return infer_tools([row.answer for row in rows], offered)

    def _list_labels(self, rows: Sequence[TableRow]) -> list[str]:
        if not self.has_labels:
            return []
        found = Counter(row.answer for row in rows if row.answer is not None)
        labels = sorted(found, key=lambda name: (-found[name], name))
        if self.options.labels:
            given = list(dict.fromkeys(" ".join(name.split()) for name in self.options.labels if name.strip()))
            if others := [label for label in labels if label not in given]:
                message = f"labels that --label does not name: {', '.join(map(repr, others[:20]))}."
                remedy = "Name all of them, or map them with --map 'old=new'."
                raise InputError([Problem(self.path, message, remedy)])
            labels = given
        if len(labels) < 2:
            raise InputError([self._make_label_problem(labels)])
        if len(labels) > 20 and 2 * len(labels) > sum(found.values()) > 0:
            message = f"{self.options.columns.answer[0]!r} has {len(labels)} different values in {found.total()} rows."
            remedy = "These are no labels: name another --label-field, or another --kind such as generation."
            raise InputError([Problem(self.path, message, remedy)])
        if all(label.lstrip("-").isdecimal() for label in labels):
            self.notes.append("The labels are numbers. Give them names that a model understands: --map 0=refund …")
        return labels

    def _make_label_problem(self, labels: Sequence[str]) -> Problem:
        if labels:
            message, remedy = f"the only label is {labels[0]!r}.", "A task needs two labels or more."
        else:
            message = "no row has a label."
            remedy = "Name the column with --label-field, or the labels with --label A --label B, to label rows later."
        return Problem(self.path, message, remedy, field=next(iter(self.options.columns.answer), None))

    def _check_answers(self, rows: list[TableRow]) -> list[TableRow]:
        """The rows with their answers in canonical form. A row whose answer does not fit is a problem."""
        if self.has_labels:
            return rows
        kind = get_kind(self._build_probe())
        kept: list[TableRow] = []
        problems: list[Problem] = []
        for row in rows:
            if row.answer is not None:
                try:
                    row = replace(row, answer=kind.canonicalize(row.answer, Question(row.text)))
                except InvalidAnswerError as why:
                    field_name = next(iter(self.options.columns.answer), None)
                    problems.append(row.record.make_problem(f"{str(why).rstrip('.')}.", SKIP_REMEDY, field_name))
                    continue
            kept.append(row)
        self._refuse_problems(problems)
        return kept

    def _build_probe(self) -> Task:
        """A task with the same answers, to read answers with."""
        settings: dict[str, Any] = {
            "kind": self.options.kind,
            "description": "-",
            "teacher": "-",
            "students": {"s": {"model": "-", "architecture": "causal_lm"}},
        }
        if self.schema is not None:
            settings["answer_schema"] = self.schema if self.schema.get("type") == "object" else {"type": "object"}
        if self.options.kind == "tool_call":
            if not self.tools:
                problem = Problem(self.path, "no record calls or offers a tool.", "Name the calls with --label-field.")
                raise InputError([problem])
            settings["tools"] = self.tools
        return Task.model_validate(settings)

    def _note_conflicts(self, conflicts: Sequence[tuple[TableRow, TableRow]]) -> None:
        """Name the first texts with different answers, and count the others."""
        if not conflicts:
            return
        named = "; ".join(_describe_conflict(first, other) for first, other in conflicts[:_NAMED_CONFLICTS])
        rest = len(conflicts) - _NAMED_CONFLICTS
        more = f"; and {count_noun(rest, 'other text')}" if rest > 0 else ""
        texts = "1 text has" if len(conflicts) == 1 else f"{len(conflicts)} texts have"
        self.notes.append(f"{texts} different answers, so none is used: {named}{more}.")

    def _split(self, units: Mapping[str, list[TableRow]]) -> dict[str, Part | None]:
        split = [SplitUnit(key, self._get_group(rows[0])) for key, rows in units.items()]
        labelled = Counter(unit.label for unit in split if unit.label is not None)
        if not labelled and self.answered:
            message = f"no text keeps its answer: {self.notes[0] if self.notes else 'each is a duplicate.'}"
            raise InputError([Problem(self.path, message, "Give each text one answer.")])
        if not labelled:
            return self._choose_rows_to_label(split)
        split = self._leave_out_rare_labels(split, labelled, units)
        labelled = Counter(unit.label for unit in split if unit.label is not None)
        total = labelled.total()
        sizes = choose_sizes(total, len(split) - total, len(labelled), self.options.sizes)
        parts = split_units(split, sizes, self.options.seed)
        if "seeds" not in parts.values():
            message = f"no row is left for the slices: {total} labelled rows, {len(split) - total} others."
            remedy = "Add rows; those in the slices need no label. Or make parts smaller: --golden N --dev N."
            raise InputError([Problem(self.path, message, remedy)])
        return parts

    def _get_group(self, row: TableRow) -> str | None:
        if row.answer is None:
            return None
        return str(row.answer) if self.has_labels else ""

    def _leave_out_rare_labels(
        self, split: list[SplitUnit], labelled: Counter[str], units: Mapping[str, list[TableRow]]
    ) -> list[SplitUnit]:
        least = sum(LEAST.values())
        rare = {label: number for label, number in labelled.items() if number < least}
        if self.has_labels:
            rare |= {label: 0 for label in self.labels if label not in labelled}
        if not rare:
            return split
        ranked = sorted(rare.items(), key=lambda item: (-item[1], item[0]))
        described = ", ".join(f"{label or 'all'} ({number})" for label, number in ranked[:_NAMED_LABELS])
        described += f" and {len(ranked) - _NAMED_LABELS} more" if len(ranked) > _NAMED_LABELS else ""
        left = [label for label in self.labels if label not in rare]
        if not self.has_labels or not self.options.skip_invalid or len(left) < 2:
            what = "labels with" if self.has_labels else "answers in"
            message = f"{what} fewer than {least} different rows, which examples, dev and golden need: {described}."
            remedy = "Near-duplicates count once. Add rows"
            if self.has_labels:
                remedy += ", put them together with --map 'old=new', or leave these rows out with --skip-invalid"
            raise InputError([Problem(self.path, message, f"{remedy}.")])
        self.labels = left
        self.left_out["rows of rare labels"] += sum(len(units[unit.key]) for unit in split if unit.label in rare)
        self.notes.append(f"Labels with too few rows are left out: {described}.")
        return [unit for unit in split if unit.label not in rare]

    def _choose_rows_to_label(self, split: Sequence[SplitUnit]) -> dict[str, Part | None]:
        """Parts for a table that nobody labelled: some rows for a person to label, the rest are seeds."""
        ranked = sorted(split, key=lambda unit: hash_strings(str(self.options.seed), unit.key))
        wanted = sum(self.options.sizes.get(part, 0) for part in LEAST) or MOST_TO_LABEL
        count = min(wanted, max(len(ranked) // 2, 1))
        if len(ranked) < 2:
            problem = Problem(self.path, "there are too few rows for a task.", "Add rows.")
            raise InputError([problem])
        most = self.options.sizes.get("seeds", MOST["seeds"])
        parts: dict[str, Part | None] = {}
        for number, unit in enumerate(ranked):
            if number < count:
                parts[unit.key] = _SHEET_PATTERN[number % len(_SHEET_PATTERN)]
            else:
                parts[unit.key] = "seeds" if number - count < most else None
        return parts

    def _assemble(
        self, units: Mapping[str, list[TableRow]], parts: Mapping[str, Part | None], table: TableRows
    ) -> TaskPlan:
        named = self._name_slices([row for rows in units.values() for row in rows])
        ids = Counter(row.id for rows in units.values() for row in rows if row.id)
        stem = self.source.rsplit(".", 1)[0] or "row"
        chosen: dict[Part, list[FolderRow]] = {part: [] for part in PARTS}
        for key, rows in units.items():
            part = parts.get(key)
            if part is None:
                if key in parts:
                    self.left_out["rows beyond the wanted number of seeds"] += len(rows)
                continue
            if part != "seeds":
                self.left_out["near-duplicates of rows in examples, dev or golden"] += len(rows) - 1
                rows = rows[:1]
            for row in rows:
                id_ = row.id if row.id and ids[row.id] == 1 else f"{stem}-{hash_content(row.key)[:10]}"
                place = f"{self.source}:{row.record.line}" if row.record.line else f"{self.source} {_name_place(row)}"
                slice_ = named.get(row.slice or "", self._default_slice)
                chosen[part].append(FolderRow(row, id_, slice_, place))
        unlabelled = not any(row.row.answer is not None for part in LEAST for row in chosen[part])
        counts = Counter(row.row.answer for rows in chosen.values() for row in rows if self.has_labels)
        sketch = self._build_sketch(chosen, counts, unlabelled)
        files = {TASK_FILE: render_task_yaml(sketch)}
        answer = "label" if self.has_labels else "answer"
        if unlabelled:
            rows_to_label = [(part, row) for part in LEAST for row in chosen[part]]
            order = {key: number for number, key in enumerate(parts)}
            rows_to_label.sort(key=lambda pair: order[pair[1].row.key])
            files[SHEET_FILE] = render_sheet(rows_to_label, answer, self.reasoning)
        else:
            files |= {name: render_rows(chosen[part], answer) for part, name in PART_FILES.items()}
        slices: dict[str, list[FolderRow]] = {}
        for seed in chosen["seeds"]:
            slices.setdefault(seed.slice, []).append(seed)
        for slice_, rows_of_slice in sorted(slices.items()):
            files[f"slices/{slice_}.yaml"] = render_slice(self._describe_slice(slice_, named), rows_of_slice)
        if not unlabelled:
            self._note_sizes(chosen)
        by_label: dict[str, dict[Part, int]] = {}
        for label in self.labels or [""]:
            by_label[label] = {
                part: sum(1 for row in rows if not self.has_labels or row.row.answer == label)
                for part, rows in chosen.items()
            }
        return TaskPlan(
            self.options.name,
            self.options.kind,
            len(self.records) + len(self.unreadable),
            files,
            {part: len(rows) for part, rows in chosen.items()},
            by_label,
            {reason: number for reason, number in self.left_out.items() if number},
            self.renamed,
            dict(sorted(table.masked.items())),
            {slice_: len(rows) for slice_, rows in sorted(slices.items())},
            sum(len(chosen[part]) for part in LEAST) if unlabelled else 0,
            tuple(dict.fromkeys(self.notes)),
        )

    @property
    def _default_slice(self) -> str:
        return self.options.slice or slugify(Path(self.source).stem) or DEFAULT_SLICE

    def _name_slices(self, rows: Sequence[TableRow]) -> dict[str, str]:
        named = name_slices(row.slice for row in rows if row.slice)
        if len(set(named.values())) > MAX_SLICES:
            message = f"{self.options.columns.slice!r} has {len(set(named.values()))} different values."
            remedy = f"A slice is a partition, and more than {MAX_SLICES} are too many. Name another --slice-field."
            raise InputError([Problem(self.path, message, remedy)])
        return named

    def _describe_slice(self, slice_: str, named: Mapping[str, str]) -> str:
        values = sorted(value for value, key in named.items() if key == slice_)
        if not values:
            return f"Rows of {self.source}."
        return f"Rows of {self.source} whose {self.options.columns.slice} is {' or '.join(values[:5])}."

    def _build_sketch(
        self, chosen: Mapping[Part, list[FolderRow]], counts: Counter[Any], unlabelled: bool
    ) -> TaskSketch:
        rows = [row.row for part in chosen.values() for row in part]
        by_label = Counter(self._get_group(row.row) for row in chosen["examples"])
        fewest = min(by_label.values(), default=1)
        answered = [row for row in rows if row.answer is not None]
        answers = [len(f"{_format_answer(row.answer)}{row.reasoning or ''}".encode()) for row in answered]
        return TaskSketch(
            name=self.options.name,
            source=self.source,
            kind=self.options.kind,
            parts={part: 0 if unlabelled and part != "seeds" else len(chosen[part]) for part in PARTS},
            seed=self.options.seed,
            description=self.options.description,
            labels=[(label, counts[label]) for label in self.labels],
            answer_schema=self.schema,
            tools=self.tools,
            reasoning=self.reasoning,
            fewest_examples=fewest,
            text_bytes=_measure([_measure_prompt(row) for row in rows]),
            answer_bytes=_measure(answers or [200]),
            teacher=self.options.teacher,
            student=self.options.student,
            schema_path=self.options.schema_path,
            has_references=any(row.row.answer is not None for row in chosen["seeds"]),
        )

    def _note_sizes(self, chosen: Mapping[Part, list[FolderRow]]) -> None:
        golden = len(chosen["golden"])
        if golden < 100:
            points = 100 * 0.98 / math.sqrt(golden)
            rows = count_noun(golden, "row")
            self.notes.append(f"golden has {rows}, so a score is known to about {points:.0f} points. More are better.")
        if len(chosen["seeds"]) < 50:
            prompts = count_noun(len(chosen["seeds"]), "prompt")
            remedy = f"Add unlabelled ones: `distill import {self.options.name} FILE --as seeds`."
            self.notes.append(f"The slices have {prompts}, which is little to learn from. {remedy}")


def _read_tools(value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return []
    return value if isinstance(value, list) else []


def _format_answer(answer: Any) -> str:
    return answer if isinstance(answer, str) else to_canonical_json(answer)


def _measure_prompt(row: TableRow) -> int:
    """The length of a prompt in bytes, of which a token has about three in every script."""
    texts = [turn["content"] for turn in row.messages] if row.messages else [row.text]
    return sum(len(text.encode()) for text in texts)


def _measure(lengths: Sequence[int]) -> tuple[float, float]:
    """Mean and 95th percentile."""
    ordered = sorted(lengths)
    return statistics.fmean(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]


def _name_place(row: TableRow) -> str:
    return f"line {row.record.line}" if row.record.line else row.record.name or row.record.file.name


def _describe_conflict(first: TableRow, other: TableRow) -> str:
    return f"{_name_place(first)} says {_shorten(first.answer)}, {_name_place(other)} {_shorten(other.answer)}"


def _shorten(answer: Any) -> str:
    text = _format_answer(answer)
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
