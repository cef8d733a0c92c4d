"""Whether the student is at most a margin worse than the teacher (Piaggio et al. 2012, CONSORT)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from distill_dagster.evaluation.metrics.slices import compare_scores
from distill_dagster.evaluation.metrics.system_arrays import SystemArrays, is_binary
from distill_dagster.evaluation.metrics.types import NonInferiority
from distill_dagster.evaluation.statistics import Interval, compute_non_inferiority_p_value

if TYPE_CHECKING:
    from distill_dagster.config import EvaluationSpec
    from distill_dagster.kinds import Kind


def compute_non_inferiority(
    student: SystemArrays, teacher: SystemArrays, spec: EvaluationSpec, kind: Kind | None
) -> NonInferiority | None:
    """Compare the student with the teacher and `spec.margin`. None if no item has answers of both."""
    both = (student.present * teacher.present) > 0
    n = int(both.sum())
    if not n:
        return None
    difference, _ = compare_scores(student, teacher, both, spec, kind)
    p_value = None
    if is_binary(kind):
        only_student = int((both & (student.scores > teacher.scores)).sum())
        only_teacher = int((both & (teacher.scores > student.scores)).sum())
        p_value = compute_non_inferiority_p_value(only_student, only_teacher, n, spec.margin)
    return NonInferiority(spec.margin, n, difference, p_value, _estimate_items(difference, n, spec.margin))


def _estimate_items(difference: Interval, items: int, margin: float) -> int | None:
    """Items at which the lower bound would reach the margin: its distance falls with the root of their number."""
    value, low = difference.value, difference.low
    if value is None or low is None or low > -margin or value <= -margin:
        return None
    return math.ceil(items * ((value - low) / (value + margin)) ** 2)
