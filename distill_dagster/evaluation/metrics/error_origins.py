"""Divide a student's wrong answers: those that the teacher gets wrong as well, and the student's own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from distill_dagster.evaluation.metrics.system_arrays import SystemArrays
from distill_dagster.evaluation.metrics.types import ErrorOrigins, SystemScore

if TYPE_CHECKING:
    from distill_dagster.kinds import Kind


def add_error_origins(
    score: SystemScore, s: SystemArrays, teacher: SystemArrays, slices: Sequence[str], kind: Kind | None
) -> SystemScore:
    """Add the origins of a system's errors to its score, over all items and by slice.

    Only the items that the teacher answered as well count. `slices` has the slice of each item.
    """
    every: list[str] = []
    per_slice: dict[str, list[str]] = {}
    for i, name in enumerate(slices):
        if s.present[i] and teacher.present[i]:
            origin = _find_origin(s, teacher, i, kind)
            every.append(origin)
            per_slice.setdefault(name, []).append(origin)
    return replace(
        score,
        errors=_count_origins(every) if every else None,
        errors_per_slice={name: _count_origins(per_slice[name]) for name in sorted(per_slice)},
    )


def _find_origin(s: SystemArrays, teacher: SystemArrays, item: int, kind: Kind | None) -> str:
    if s.scores[item]:
        return "right"
    if teacher.scores[item]:
        return "own"
    return "same_answer" if is_same_answer(s.texts[item], teacher.texts[item], kind) else "another_answer"


def is_same_answer(first: str | None, second: str | None, kind: Kind | None) -> bool:
    """Whether two answers, as canonical JSON, are equal. A missing answer equals none, not even another missing one."""
    if first is None or second is None:
        return False
    return first == second or (kind is not None and kind.are_equal(json.loads(first), json.loads(second)))


def _count_origins(origins: Sequence[str]) -> ErrorOrigins:
    counts = (origins.count(name) for name in ("same_answer", "another_answer", "own"))
    return ErrorOrigins(len(origins), *counts)
