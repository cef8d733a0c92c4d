"""The figures of a report as dataclasses, and the names of systems."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from distill_dagster.evaluation.costs import DistillationCost
from distill_dagster.evaluation.statistics import Interval

TEACHER, BASE, SEED_ONLY, DISTILLED = "teacher", "base", "seed_only", "distilled"
CENTROID, SLICE_LABEL, LINEAR_PROBE = "centroid", "slice_label", "linear_probe"
ASSISTANT = "assistant"
SYSTEM_ORDER = (TEACHER, ASSISTANT, BASE, SEED_ONLY, DISTILLED, LINEAR_PROBE, CENTROID, SLICE_LABEL)
"""The order in which systems are shown. Systems with other names follow, sorted by name."""
GOLDEN = "golden"
MCNEMAR, PERMUTATION = "McNemar", "paired permutation"
NO_SLICE = "(no slice)"
NO_ANSWER = "(no label)"


@dataclass(frozen=True)
class SystemFacts:
    """What a system is and costs. None means unknown, never zero. `bytes` is the size on disk, `peak_mb` 10^6 bytes."""

    model: str | None = None
    parameters: int | None = None
    bytes: int | None = None
    cost_usd_per_1k: float | None = None
    peak_mb: float | None = None
    tokens_per_request: float | None = None


@dataclass(frozen=True)
class LatencySummary:
    """Seconds per item, over the `items` that were timed one by one. None if no item was timed."""

    items: int
    p50: float | None
    p95: float | None
    mean: float | None


@dataclass(frozen=True)
class LabelScore:
    """Precision and recall of one label. Precision is None if no answer has the label, recall if no reference has it.

    `n` counts the items whose reference is the label, `answered` those whose answer is.
    """

    label: str
    n: int
    answered: int
    precision: float | None
    recall: float | None


@dataclass(frozen=True)
class SystemScore:
    """One system on one split. `confusion` has (reference, answer, items) for each cell that is not zero.

    `score` is the mean of the kind's score (`Metrics.metric`: accuracy, ROUGE-L, …). `second_score` is its second
    figure (`Metrics.second_metric`: macro-F1, token F1, …), undefined for kinds without one. `per_slice` maps a slice
    to its items and their mean score. `per_label` and `confusion` are empty for kinds without labels.
    """

    system: str
    n: int
    score: Interval
    second_score: Interval
    latency: LatencySummary
    per_slice: dict[str, tuple[int, float]]
    per_label: tuple[LabelScore, ...]
    confusion: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True)
class SystemComparison:
    """Score of `first` minus score of `second` on the `n` items that both answered.

    `only_first` and `only_second` count the items that only one system got right, or on which it scores higher.
    `test` names the paired test of the p-value.
    """

    first: str
    second: str
    n: int
    difference: Interval
    ratio: Interval
    only_first: int
    only_second: int
    p_value: float
    test: str = MCNEMAR

    def to_dict(self) -> dict[str, Any]:
        plain = {"first": self.first, "second": self.second, "n": self.n, "p_value": self.p_value}
        counts = {"only_first_correct": self.only_first, "only_second_correct": self.only_second}
        return plain | counts | {"difference": self.difference.to_dict(), "ratio": self.ratio.to_dict()}


@dataclass(frozen=True)
class SplitMetrics:
    """All systems on one split. `comparisons` are on the same resampled items.

    `distilled` and `base` are compared with all others, and `assistant`, a student that teaches this one, with the
    teacher.
    """

    split: str
    systems: dict[str, SystemScore]
    comparisons: dict[tuple[str, str], SystemComparison]

    @property
    def retention(self) -> Interval:
        """Score of the distilled student divided by the teacher's. Undefined without a teacher."""
        pair = self.comparisons.get((DISTILLED, TEACHER))
        return pair.ratio if pair else Interval(None)

    @property
    def steps(self) -> tuple[SystemComparison, ...]:
        """From the teacher to its assistant, and from there to the student. Empty without an assistant."""
        pairs = ((ASSISTANT, TEACHER), (DISTILLED, ASSISTANT))
        return tuple(self.comparisons[pair] for pair in pairs) if all(p in self.comparisons for p in pairs) else ()


@dataclass(frozen=True)
class Metrics:
    """Figures of every split, the settings they were computed with, and what the distillation cost."""

    splits: dict[str, SplitMetrics]
    facts: dict[str, SystemFacts]
    labels: tuple[str, ...]
    confidence: float
    bootstrap_samples: int
    seed: int
    metric: str = "accuracy"
    second_metric: str | None = "macro_f1"
    distillation: DistillationCost | None = None

    @property
    def golden(self) -> SplitMetrics:
        return self.splits[GOLDEN]
