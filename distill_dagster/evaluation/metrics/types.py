"""The figures of a report as dataclasses, and the names of systems."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from distill_dagster.evaluation.costs import DistillationCost
from distill_dagster.evaluation.metrics.win_rate import WinRate
from distill_dagster.evaluation.speed import Speed
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
    speed: Speed = field(default_factory=Speed)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SystemFacts:
        """The facts that a record of predictions has, also one of an earlier version, with fewer of them."""
        return cls(**{**value, "speed": Speed.from_json(value.get("speed") or {})})


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
class SliceScore:
    """The score of a system on the `n` items of one slice: a Wilson interval, or a bootstrap if scores are graded."""

    slice: str
    n: int
    score: Interval


@dataclass(frozen=True)
class ErrorOrigins:
    """Where the wrong answers of a student come from, on the `n` items that the teacher answered too.

    An error is inherited if the teacher is wrong as well: with the `same_answer`, or with `another_answer`. It is the
    student's `own` if the teacher is right.
    """

    n: int
    same_answer: int
    another_answer: int
    own: int

    @property
    def inherited(self) -> int:
        return self.same_answer + self.another_answer

    def to_dict(self) -> dict[str, int]:
        plain = {"n": self.n, "inherited": self.inherited, "same_answer": self.same_answer}
        return plain | {"another_answer": self.another_answer, "own": self.own}


@dataclass(frozen=True)
class SystemScore:
    """One system on one split. `confusion` has (reference, answer, items) for each cell that is not zero.

    `score` is the mean of the kind's score (`Metrics.metric`: accuracy, ROUGE-L, …) with its bootstrap interval.
    `wilson` is the same mean with the Wilson interval; None if scores are graded. `second_score` is the kind's second
    figure (`Metrics.second_metric`: macro-F1, token F1, …), undefined for kinds without one. `per_label` and
    `confusion` are empty for kinds without labels. `text_scores` has further figures of kinds whose answer is a free
    text, by name, from 0 to 1.

    `errors` are the origins of its wrong answers, and `errors_per_slice` the same by slice. They are None and empty for
    the teacher, without a teacher, and if scores are graded.
    """

    system: str
    n: int
    score: Interval
    second_score: Interval
    latency: LatencySummary
    slices: tuple[SliceScore, ...]
    per_label: tuple[LabelScore, ...]
    confusion: tuple[tuple[str, str, int], ...]
    wilson: Interval | None = None
    text_scores: Mapping[str, float] = field(default_factory=dict)
    errors: ErrorOrigins | None = None
    errors_per_slice: Mapping[str, ErrorOrigins] = field(default_factory=dict)

    @property
    def per_slice(self) -> dict[str, tuple[int, float]]:
        """Items and mean score of each slice."""
        return {s.slice: (s.n, s.score.value) for s in self.slices if s.score.value is not None}


@dataclass(frozen=True)
class SystemComparison:
    """Score of `first` minus score of `second` on the `n` items that both answered.

    `only_first` and `only_second` count the items that only one system got right, or on which it scores higher.
    `test` names the paired test of the p-value. `adjusted_p_value` is corrected for all pairs of the split (Holm 1979).
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
    adjusted_p_value: float | None = None

    def to_dict(self) -> dict[str, Any]:
        plain = {"first": self.first, "second": self.second, "n": self.n, "p_value": self.p_value}
        counts = {"only_first_correct": self.only_first, "only_second_correct": self.only_second}
        adjusted = {"adjusted_p_value": self.adjusted_p_value}
        return plain | adjusted | counts | {"difference": self.difference.to_dict(), "ratio": self.ratio.to_dict()}


@dataclass(frozen=True)
class SliceComparison:
    """Score of the distilled student minus that of another system, on the `n` items of one slice that both answered.

    The interval is a score interval (Tango 1998), or a bootstrap if scores are graded. `adjusted_p_value` is corrected
    for all slices (Holm 1979): the one to go by when looking for slices that are better or worse.
    """

    slice: str
    n: int
    difference: Interval
    only_first: int
    only_second: int
    p_value: float
    adjusted_p_value: float

    def to_dict(self) -> dict[str, Any]:
        plain = {"n": self.n, "difference": self.difference.to_dict(), "p_value": self.p_value}
        counts = {"only_first_correct": self.only_first, "only_second_correct": self.only_second}
        return plain | counts | {"adjusted_p_value": self.adjusted_p_value}


@dataclass(frozen=True)
class NonInferiority:
    """Whether the distilled student is at most `margin` worse than the teacher, on the `n` items that both answered.

    Attributes:
        difference: student minus teacher, with a score interval (Tango 1998), or a bootstrap if scores are graded.
        p_value: one-sided, of the hypothesis that the student is worse by the margin or more; None if scores are
            graded.
        needed_items: about how many items would show it, if the measured difference is the true one; None if it is not
            within the margin, or already shown.
    """

    margin: float
    n: int
    difference: Interval
    p_value: float | None
    needed_items: int | None

    @property
    def is_shown(self) -> bool | None:
        """True if the whole interval is within the margin, False if none of it is, None if the items cannot decide."""
        low, high = self.difference.low, self.difference.high
        if low is None or high is None:
            return None
        if low > -self.margin:
            return True
        return False if high < -self.margin else None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"difference": self.difference.to_dict(), "is_shown": self.is_shown}


@dataclass(frozen=True)
class SplitMetrics:
    """All systems on one split. `comparisons` are on the same resampled items.

    `distilled` and `base` are compared with all others, and `assistant`, a student that teaches this one, with the
    teacher. `pairs` has every two systems once, the earlier in `SYSTEM_ORDER` first. `slice_comparisons` compares
    `distilled` by slice with each other system. `non_inferiority` is None without a teacher.
    """

    split: str
    systems: dict[str, SystemScore]
    comparisons: dict[tuple[str, str], SystemComparison]
    pairs: tuple[SystemComparison, ...] = ()
    slice_comparisons: Mapping[str, tuple[SliceComparison, ...]] = field(default_factory=dict)
    non_inferiority: NonInferiority | None = None

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
    """Figures of every split, the settings they were computed with, and what the distillation cost.

    `win_rate` is what a judge prefers on golden; None if it was not asked.
    """

    splits: dict[str, SplitMetrics]
    facts: dict[str, SystemFacts]
    labels: tuple[str, ...]
    confidence: float
    bootstrap_samples: int
    seed: int
    metric: str = "accuracy"
    second_metric: str | None = "macro_f1"
    distillation: DistillationCost | None = None
    win_rate: WinRate | None = None

    @property
    def golden(self) -> SplitMetrics:
        return self.splits[GOLDEN]
