"""The figures of a report, computed from one predictions table.

`types` has the dataclasses and the names of systems, `compute` fills them. Everything here recomputes from the
predictions alone. Verdicts, prose and pages are elsewhere in `evaluation`.
"""

from distill_dagster.evaluation.metrics.compute import compute_metrics
from distill_dagster.evaluation.metrics.frames import build_confusion_table, build_metrics_frame
from distill_dagster.evaluation.metrics.types import (
    ASSISTANT,
    BASE,
    CENTROID,
    DISTILLED,
    GOLDEN,
    LINEAR_PROBE,
    MCNEMAR,
    NO_ANSWER,
    NO_SLICE,
    PERMUTATION,
    SEED_ONLY,
    SLICE_LABEL,
    SYSTEM_ORDER,
    TEACHER,
    ErrorOrigins,
    LabelScore,
    LatencySummary,
    Metrics,
    NonInferiority,
    SliceComparison,
    SliceScore,
    SplitMetrics,
    SystemComparison,
    SystemFacts,
    SystemScore,
)
from distill_dagster.evaluation.metrics.win_rate import WinRate, compute_win_rate

__all__ = [
    "ASSISTANT",
    "BASE",
    "CENTROID",
    "DISTILLED",
    "GOLDEN",
    "LINEAR_PROBE",
    "MCNEMAR",
    "NO_ANSWER",
    "NO_SLICE",
    "PERMUTATION",
    "SEED_ONLY",
    "SLICE_LABEL",
    "SYSTEM_ORDER",
    "TEACHER",
    "ErrorOrigins",
    "LabelScore",
    "LatencySummary",
    "Metrics",
    "NonInferiority",
    "SliceComparison",
    "SliceScore",
    "SplitMetrics",
    "SystemComparison",
    "SystemFacts",
    "SystemScore",
    "WinRate",
    "build_confusion_table",
    "build_metrics_frame",
    "compute_metrics",
    "compute_win_rate",
]
