"""Clean the labels of a table: spaces, spellings that differ in case, missing values, and names that a person maps."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill_dagster.new_task.columns import format_cell, is_missing

MAX_LABEL_CHARS = 100
_MISSING_LABELS = {"nan", "null", "#n/a", "<na>"}
"""What spreadsheets and pandas write into a cell without a value."""


@dataclass(frozen=True)
class CleanLabels:
    """The label of each row, or None, and what was changed.

    Attributes:
        renamed: for each spelling that was changed, the label it became and the number of its rows.
        unused: keys of the mapping that no row has.
    """

    labels: list[str | None]
    renamed: dict[str, tuple[str | None, int]]
    unused: tuple[str, ...] = ()


class NotALabelError(ValueError):
    """A cell that cannot be a label. The message says why."""


def read_label_cell(value: Any) -> str | None:
    """The label in a cell as it is written, or None for a missing one.

    Raises:
        NotALabelError: it has several labels, or is a text.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if is_missing(value):
        return None
    if isinstance(value, list | tuple | dict):
        raise NotALabelError("the cell has several values, and a row has one label")
    if isinstance(value, float):
        if value != value:
            return None
        value = int(value) if value.is_integer() else value
    label = value if isinstance(value, str) else format_cell(value)
    if len(label.strip()) > MAX_LABEL_CHARS:
        raise NotALabelError(f"the label has more than {MAX_LABEL_CHARS} characters")
    return label


def clean_labels(written: Sequence[str | None], mapping: Mapping[str, str]) -> CleanLabels:
    """Give all spellings of a label one name.

    Args:
        written: the label of each row as written.
        mapping: by a spelling, the label it means; an empty one means no label. Spaces at the ends do not count.
    """
    exact = dict(mapping)
    trimmed = {_fold_spaces(old): new for old, new in mapping.items()}
    used: set[str] = set()
    named: list[str | None] = []
    fixed: dict[str, str] = {_fold_case(new): _fold_spaces(new) for new in mapping.values()}
    for value in written:
        plain = _fold_spaces(value) if value is not None else None
        if value is not None and value in exact:
            used.add(_fold_spaces(value))
            plain = _fold_spaces(exact[value])
        elif plain is not None and plain in trimmed:
            used.add(plain)
            plain = _fold_spaces(trimmed[plain])
        elif plain is not None and plain.casefold() in _MISSING_LABELS:
            plain = None
        named.append(plain or None)
    if (names := [name for name in named if name]) and all(name.removesuffix(".0").isdecimal() for name in names):
        named = [name.removesuffix(".0") if name else None for name in named]  # class numbers that pandas wrote
    spellings = Counter(name for name in named if name is not None)
    chosen: dict[str, str] = {}
    for name, _ in sorted(spellings.items(), key=lambda item: (-item[1], item[0].swapcase())):
        chosen.setdefault(_fold_case(name), fixed.get(_fold_case(name), name))
    labels = [chosen[_fold_case(name)] if name is not None else None for name in named]
    changes = Counter(
        (old, new) for old, new in zip(written, labels, strict=True) if old is not None and old.strip() and old != new
    )
    unused = tuple(old for old in mapping if _fold_spaces(old) not in used)
    return CleanLabels(labels, {old: (new, number) for (old, new), number in sorted(changes.items())}, unused)


def _fold_spaces(text: str) -> str:
    return " ".join(text.split())


def _fold_case(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()
