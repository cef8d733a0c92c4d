"""Say each mistake once: one line for all lines of a file that have the same problem."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from distill_dagster.core.errors import Problem
from distill_dagster.core.formatting import count_noun

MAX_ALIKE = 10
"""How many problems are shown that differ in a name or number only, such as that of an unknown label."""
_Key = tuple[str | None, ...]
_RECORD = re.compile(r"^record (\d+)(?: \(id [^)]*\))?: ")
_DETAIL = re.compile(r"'[^']*'|\"[^\"]*\"|\d+")


def group_problems(problems: Sequence[Problem]) -> list[Problem]:
    """One problem for each mistake in a file, at its first line, with the number of lines or records that have it."""
    same: dict[_Key, list[Problem]] = {}
    for problem in problems:
        message = _RECORD.sub("", problem.message)
        key: _Key = (str(problem.file), problem.field, message, problem.remedy, problem.severity)
        same.setdefault(key, []).append(problem)
    alike: dict[_Key, list[Problem]] = {}
    for key, group in same.items():
        place: _Key = (*key[:2], _DETAIL.sub("…", key[2] or ""), key[4])
        alike.setdefault(place, []).append(_merge(group))
    shown: list[Problem] = []
    for groups in alike.values():
        shown += groups[:MAX_ALIKE]
        if rest := len(groups) - MAX_ALIKE:
            shown += _count_rest(groups[MAX_ALIKE:], rest) if rest > 0 else []
    return shown


def _merge(group: list[Problem]) -> Problem:
    first = group[0]
    if len(group) == 1:
        return first
    lines = [problem.line for problem in group if problem.line]
    records = [int(match[1]) for problem in group if (match := _RECORD.match(problem.message))]
    where = f"lines {_format_numbers(lines)}" if lines else f"records {_format_numbers(records)}" if records else ""
    times = f"{len(group)} times" + (f", in {where}" if where else "")
    return replace(first, remedy=f"{first.remedy} ({times})")


def _count_rest(groups: list[Problem], rest: int) -> list[Problem]:
    first = groups[0]
    message = f"{count_noun(rest, 'more problem', 'more problems')} like this, from here on."
    return [replace(first, message=message, remedy="Fix the first ones first.")]


def _format_numbers(numbers: Iterable[int]) -> str:
    """Numbers as ranges: `2-300`, or `2, 4, 7-9, …`."""
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    texts = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return ", ".join([*texts[:8], "…"] if len(texts) > 8 else texts)
