"""Choose the part of each row of a new task: examples, dev, golden or seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.hashing import hash_strings
from distill_dagster.new_task.answers import render_answer
from distill_dagster.new_task.checked_rows import CheckedRows
from distill_dagster.new_task.options import NewTaskOptions
from distill_dagster.new_task.rows import TableRow, name_place
from distill_dagster.new_task.split import LEAST, MOST, MOST_TO_LABEL, Part, SplitUnit, choose_sizes, split_units
from distill_dagster.new_task.tally import Tally
from distill_dagster.new_task.units import build_units, find_conflicts

_NAMED_CONFLICTS, _NAMED_LABELS = 3, 20
"""How many texts with several answers, and rare labels, are named before the rest is counted."""
_SHEET_PATTERN: tuple[Part, ...] = ("examples", "golden", "dev", "golden", "examples", "golden", "dev", "golden")
"""The parts of rows to label, in turns: whoever labels only the first rows has all parts."""


@dataclass(frozen=True)
class ChosenParts:
    """The rows by unit, the part of each unit, and the labels that have enough rows.

    A unit without a part has a rare label. One whose part is None is beyond the wanted number of seeds.
    """

    units: dict[str, list[TableRow]]
    parts: dict[str, Part | None]
    labels: list[str]


def choose_parts(checked: CheckedRows, path: Path, options: NewTaskOptions, tally: Tally) -> ChosenParts:
    """Choose the part of each row of the file at `path`, and add what is left out to the tally.

    Raises:
        InputError: too few rows are left.
    """
    units = build_units(checked.rows, options.kind)
    tally.left_out["duplicates"] += len(checked.rows) - sum(len(members) for members in units.values())
    _note_conflicts(list(find_conflicts(checked.rows, options.kind)), tally)
    split = [SplitUnit(key, get_group(rows[0], options)) for key, rows in units.items()]
    labelled = Counter(unit.label for unit in split if unit.label is not None)
    if not labelled:
        if any(row.answer is not None for row in checked.rows):
            message = f"no text keeps its answer: {tally.notes[0] if tally.notes else 'each is a duplicate.'}"
            raise InputError([Problem(path, message, "Give each text one answer.")])
        return ChosenParts(units, _choose_rows_to_label(split, path, options), checked.labels)
    rare = _find_rare_labels(labelled, checked.labels)
    if rare:
        left = [label for label in checked.labels if label not in rare]
        _leave_out_rare_labels(rare, left, path, options, tally)
        tally.left_out["rows of rare labels"] += sum(len(units[unit.key]) for unit in split if unit.label in rare)
        split = [unit for unit in split if unit.label not in rare]
        labelled = Counter(unit.label for unit in split if unit.label is not None)
    total = labelled.total()
    sizes = choose_sizes(total, len(split) - total, len(labelled), options.sizes)
    parts = split_units(split, sizes, options.seed)
    if "seeds" not in parts.values():
        message = f"no row is left for the slices: {total} labelled rows, {len(split) - total} others."
        remedy = "Add rows; those in the slices need no label. Or make parts smaller: --golden N --dev N."
        raise InputError([Problem(path, message, remedy)])
    return ChosenParts(units, parts, [label for label in checked.labels if label not in rare])


def get_group(row: TableRow, options: NewTaskOptions) -> str | None:
    """What each part gets its share of: the row's label or, of other kinds, all answered rows."""
    if row.answer is None:
        return None
    return str(row.answer) if options.has_labels else ""


def _find_rare_labels(labelled: Counter[str], labels: Sequence[str]) -> dict[str, int]:
    """Labels with too few units, and how many they have."""
    least = sum(LEAST.values())
    rare = {label: number for label, number in labelled.items() if number < least}
    return rare | {label: 0 for label in labels if label not in labelled}


def _leave_out_rare_labels(
    rare: Mapping[str, int], left: Sequence[str], path: Path, options: NewTaskOptions, tally: Tally
) -> None:
    """Note that these labels are left out, or refuse them."""
    ranked = sorted(rare.items(), key=lambda item: (-item[1], item[0]))
    described = ", ".join(f"{label or 'all'} ({number})" for label, number in ranked[:_NAMED_LABELS])
    described += f" and {len(ranked) - _NAMED_LABELS} more" if len(ranked) > _NAMED_LABELS else ""
    if not options.has_labels or not options.skip_invalid or len(left) < 2:
        what = "labels with" if options.has_labels else "answers in"
        least = sum(LEAST.values())
        message = f"{what} fewer than {least} different rows, which examples, dev and golden need: {described}."
        remedy = "Near-duplicates count once. Add rows"
        if options.has_labels:
            remedy += ", put them together with --map 'old=new', or leave these rows out with --skip-invalid"
        raise InputError([Problem(path, message, f"{remedy}.")])
    tally.notes.append(f"Labels with too few rows are left out: {described}.")


def _note_conflicts(conflicts: Sequence[tuple[TableRow, TableRow]], tally: Tally) -> None:
    """Name the first texts with different answers, and count the others."""
    if not conflicts:
        return
    named = "; ".join(_describe_conflict(first, other) for first, other in conflicts[:_NAMED_CONFLICTS])
    rest = len(conflicts) - _NAMED_CONFLICTS
    more = f"; and {count_noun(rest, 'other text')}" if rest > 0 else ""
    texts = "1 text has" if len(conflicts) == 1 else f"{len(conflicts)} texts have"
    tally.notes.append(f"{texts} different answers, so none is used: {named}{more}.")


def _choose_rows_to_label(split: Sequence[SplitUnit], path: Path, options: NewTaskOptions) -> dict[str, Part | None]:
    """Parts for a table that nobody labelled: some rows for a person to label, the rest are seeds."""
    ranked = sorted(split, key=lambda unit: hash_strings(str(options.seed), unit.key))
    wanted = sum(options.sizes.get(part, 0) for part in LEAST) or MOST_TO_LABEL
    count = min(wanted, max(len(ranked) // 2, 1))
    if len(ranked) < 2:
        problem = Problem(path, "there are too few rows for a task.", "Add rows.")
        raise InputError([problem])
    most = options.sizes.get("seeds", MOST["seeds"])
    parts: dict[str, Part | None] = {}
    for number, unit in enumerate(ranked):
        if number < count:
            parts[unit.key] = _SHEET_PATTERN[number % len(_SHEET_PATTERN)]
        else:
            parts[unit.key] = "seeds" if number - count < most else None
    return parts


def _describe_conflict(first: TableRow, other: TableRow) -> str:
    return f"{name_place(first)} says {_shorten(first.answer)}, {name_place(other)} {_shorten(other.answer)}"


def _shorten(answer: Any) -> str:
    text = render_answer(answer)
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
