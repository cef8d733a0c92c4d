"""Compute all figures of a report from one predictions table and a few facts about each system."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from distill_dagster.core.errors import DistillError
from distill_dagster.evaluation.costs import DistillationCost, compute_machine_cost
from distill_dagster.evaluation.statistics import (
    Interval,
    bound_unseen_share,
    compute_accuracy_interval,
    compute_bootstrap_sums,
    compute_difference_interval,
    compute_mcnemar_p_value,
    compute_percentile_interval,
    compute_permutation_p_value,
    divide_or_nan,
)

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import polars as pl
    from numpy.typing import NDArray

    from distill_dagster.config import EvaluationSpec
    from distill_dagster.kinds import Kind

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


def compute_metrics(
    predictions: pl.DataFrame,
    facts: Mapping[str, Mapping[str, Any]],
    labels: Sequence[str],
    spec: EvaluationSpec,
    kind: Kind | None = None,
) -> Metrics:
    """Compute every figure of the report.

    For kinds with labels, and without a kind, the figures are accuracy and macro-F1. For other kinds they are the means
    of the kind's score and second score, computed from answer and reference of every row. Macro-F1 is the mean over the
    labels that are a reference in the split. Rows without a reference are left out.

    A system other than the teacher without a cost in `facts` runs on this machine. It costs what the machine costs,
    at `spec.machine_usd_per_hour`, answering one item after the other.

    Args:
        predictions: a table with the schema `PREDICTIONS`.
        facts: for each system, any of the fields of `SystemFacts`.
        labels: the task's label names, in the order in which they are shown.

    Raises:
        DistillError: there is no distilled answer to a golden item with a reference.
        ValueError: the table contradicts itself: a duplicate item, two references, or a wrong `correct`.
    """
    import polars as pl

    rows = predictions.filter(pl.col("reference").is_not_null())
    unlabelled_kind = kind if kind is not None and not kind.has_labels else None
    _check_consistency(rows, unlabelled_kind)
    if rows.filter((pl.col("system") == DISTILLED) & (pl.col("split") == GOLDEN)).is_empty():
        raise DistillError(
            "The distilled student answered no golden item. Add labelled rows to golden.jsonl and materialize "
            "`predictions` again."
        )
    references = set() if unlabelled_kind else {_read_label(r) for r in rows["reference"].unique()}
    all_labels = list(labels) + sorted(references - set(labels))
    splits = {
        str(split): _compute_split_metrics(
            str(split), rows.filter(pl.col("split") == split), all_labels, spec, unlabelled_kind
        )
        for split in rows["split"].unique().sort()
    }
    system_facts = {}
    for system, score in splits[GOLDEN].systems.items():
        fact = SystemFacts(**facts.get(system, {}))
        if fact.cost_usd_per_1k is None and system != TEACHER:
            cost = compute_machine_cost(score.latency.mean, spec.machine_usd_per_hour)
            fact = replace(fact, cost_usd_per_1k=None if cost is None else 1000 * cost)
        system_facts[system] = fact
    names = (unlabelled_kind.metric, unlabelled_kind.second_metric) if unlabelled_kind else ("accuracy", "macro_f1")
    return Metrics(splits, system_facts, tuple(all_labels), spec.confidence, spec.bootstrap_samples, spec.seed, *names)


def build_confusion_table(score: SystemScore, labels: Sequence[str]) -> tuple[list[str], list[list[int]]]:
    """Column names (labels, then `NO_ANSWER` if needed) and counts: one row per reference, one column per answer."""
    columns = list(labels) + [NO_ANSWER] * any(answer == NO_ANSWER for _, answer, _ in score.confusion)
    counts = [[0] * len(columns) for _ in labels]
    index = {name: i for i, name in enumerate(columns)}
    for reference, answer, items in score.confusion:
        counts[index[reference]][index[answer]] = items
    return columns, counts


def build_metrics_frame(metrics: Metrics, split: str = GOLDEN) -> pd.DataFrame:
    """One row per system, for `check_metrics_table`. Latency in milliseconds, size in bytes, NaN for unknown."""
    import pandas as pd

    rows = []
    for name, system in metrics.splits[split].systems.items():
        facts = metrics.facts.get(name, SystemFacts())
        rows.append(
            {
                "system": name,
                "score": system.score.value,
                "low": system.score.low,
                "high": system.score.high,
                "second_score": system.second_score.value,
                "p50_ms": None if system.latency.p50 is None else 1000 * system.latency.p50,
                "p95_ms": None if system.latency.p95 is None else 1000 * system.latency.p95,
                "parameters": facts.parameters,
                "bytes": facts.bytes,
                "cost_usd_per_1k": facts.cost_usd_per_1k,
            }
        )
    frame = pd.DataFrame(rows)
    return frame.astype({name: "float64" for name in frame.columns if name != "system"})


def _check_consistency(rows: pl.DataFrame, kind: Kind | None) -> None:
    """Raise ValueError if the rows contradict each other."""
    import polars as pl

    if rows.select("system", "split", "item_id").is_duplicated().any():
        raise ValueError("predictions: a system has two answers to the same item")
    if rows.group_by("split", "item_id").agg(pl.col("reference").n_unique()).filter(pl.col("reference") > 1).height:
        raise ValueError("predictions: one item has two references")
    if kind is not None:
        for answer, reference, correct in rows.select("answer", "reference", "correct").iter_rows():
            if correct != (answer is not None and kind.are_equal(json.loads(answer), json.loads(reference))):
                raise ValueError("predictions: some `correct` contradicts the kind's equality")
        return
    right = (pl.col("answer") == pl.col("reference")).fill_null(False)
    if rows.filter(pl.col("correct").is_null() | (pl.col("correct") != right)).height:
        raise ValueError("predictions: some `correct` is not `answer == reference`")


def _read_label(text: str | None) -> str:
    """The label of a canonical JSON answer, or `NO_ANSWER` for anything that is not a JSON string."""
    try:
        value = json.loads(text) if text is not None else None
    except json.JSONDecodeError:
        value = None
    return value if isinstance(value, str) else NO_ANSWER


@dataclass
class _SystemArrays:
    """One system's rows as arrays over all items of the split.

    `present` is 1 if the system has a row for the item, else 0. `scores` has the score of each item: 0 or 1 if answers
    are right or wrong. `answers` has the index of each answer's label, or -1.
    """

    name: str
    present: NDArray[np.float32]
    scores: NDArray[np.float32]
    answers: NDArray[np.int64]
    latencies: list[float]
    second_scores: NDArray[np.float32]


def _compute_split_metrics(
    split: str, rows: pl.DataFrame, labels: list[str], spec: EvaluationSpec, kind: Kind | None
) -> SplitMetrics:
    import numpy as np

    items = rows.unique("item_id").sort("item_id")
    ids = {item: i for i, item in enumerate(items["item_id"])}
    codes = {label: i for i, label in enumerate(labels)}
    # Kinds without labels: all items have one class, which no answer has. There is no macro-F1 and no confusion.
    truth = np.array([0 if kind else codes[_read_label(r)] for r in items["reference"]], dtype=np.int64)
    slices = [s if s is not None else NO_SLICE for s in items["slice"]]
    systems = [_build_system_arrays(str(name), part, ids, codes, kind) for (name,), part in rows.group_by("system")]
    systems.sort(key=lambda s: (SYSTEM_ORDER.index(s.name) if s.name in SYSTEM_ORDER else len(SYSTEM_ORDER), s.name))

    # One matrix with the contributions of each item, so that all statistics use the same resampled items.
    columns: list[NDArray[np.float32]] = []
    classes = np.unique(truth)
    places: dict[str, slice] = {}
    for s in systems:
        actual = (truth[:, None] == classes) * s.present[:, None]
        answered = (s.answers[:, None] == classes) * s.present[:, None]
        if kind:
            actual = answered = s.second_scores[:, None]
        block = np.hstack([s.present[:, None], s.scores[:, None], actual, answered, actual * answered])
        places[s.name] = _append_columns(columns, block)
    pairs = [(a, b) for a in systems if a.name in (DISTILLED, BASE) for b in systems if a is not b]
    pairs += [(a, b) for a in systems if a.name == ASSISTANT for b in systems if b.name == TEACHER]
    for a, b in pairs:
        both = a.present * b.present
        places[f"{a.name}-{b.name}"] = _append_columns(
            columns, np.stack([both, a.scores * both, b.scores * both], axis=1)
        )
    sums = compute_bootstrap_sums(np.hstack(columns).astype(np.float32), spec.bootstrap_samples, spec.seed)

    scores = {
        s.name: _compute_system_score(s, truth, slices, labels, sums[:, places[s.name]], spec.confidence, kind)
        for s in systems
    }
    compared = {
        (a.name, b.name): _compare_systems(a, b, sums[:, places[f"{a.name}-{b.name}"]], spec, kind) for a, b in pairs
    }
    return SplitMetrics(split, scores, compared)


def _append_columns(columns: list[NDArray[np.float32]], block: NDArray[np.float32]) -> slice:
    start = sum(c.shape[1] for c in columns)
    columns.append(block)
    return slice(start, start + block.shape[1])


def _build_system_arrays(
    name: str, part: pl.DataFrame, ids: dict[str, int], codes: dict[str, int], kind: Kind | None
) -> _SystemArrays:
    import numpy as np

    places = np.array([ids[item] for item in part["item_id"]], dtype=np.int64)
    present, scores, second_scores = (np.zeros(len(ids), np.float32) for _ in range(3))
    answers = np.full(len(ids), -1, dtype=np.int64)
    present[places] = 1
    if kind is None:
        scores[places] = part["correct"].cast(int).to_numpy()
        answers[places] = [codes.get(_read_label(answer), -1) for answer in part["answer"]]
    else:
        pairs = [
            (None if answer is None else json.loads(answer), json.loads(reference))
            for answer, reference in part.select("answer", "reference").iter_rows()
        ]
        scores[places] = [kind.score(*pair) for pair in pairs]
        second_scores[places] = [kind.score_second(*pair) for pair in pairs] if kind.second_metric else 0
    latencies = part["latency_s"].drop_nulls().drop_nans().to_list()
    return _SystemArrays(name, present, scores, answers, latencies, second_scores)


def _compute_system_score(
    s: _SystemArrays,
    truth: NDArray[np.int64],
    slices: list[str],
    labels: list[str],
    sums: NDArray[np.float64],
    level: float,
    kind: Kind | None,
) -> SystemScore:
    import numpy as np

    mask = s.present > 0
    n = int(mask.sum())
    per_slice = {}
    names = np.array(slices, dtype=object)
    for name in sorted(set(names[mask])):
        in_slice = mask & (names == name)
        per_slice[str(name)] = (int(in_slice.sum()), float(s.scores[in_slice].mean()))
    draws = divide_or_nan(sums[:, 1], sums[:, 0])
    if _is_binary(kind):
        score = compute_accuracy_interval(int(s.scores.sum()), n, draws, level)
    else:
        score = compute_percentile_interval(float(s.scores[mask].mean()) if n else None, draws, level)
    latency = _summarize_latency(s.latencies)
    if kind is not None:
        second_score = Interval(None)
        if kind.second_metric and n:
            mean = float(s.second_scores[mask].mean())
            second_score = compute_percentile_interval(mean, divide_or_nan(sums[:, 2], sums[:, 0]), level)
        return SystemScore(s.name, n, score, second_score, latency, per_slice, (), ())
    cells, items = np.unique(np.stack([truth[mask], s.answers[mask]]), axis=1, return_counts=True)
    return SystemScore(
        system=s.name,
        n=n,
        score=score,
        second_score=_compute_macro_f1(truth[mask], s.answers[mask], sums[:, 2:], level),
        latency=latency,
        per_slice=per_slice,
        per_label=_compute_label_scores(truth[mask], s.answers[mask], labels),
        confusion=tuple(
            (labels[t], labels[a] if a >= 0 else NO_ANSWER, int(k)) for (t, a), k in zip(cells.T, items, strict=True)
        ),
    )


def _compute_macro_f1(
    truth: NDArray[np.int64], answers: NDArray[np.int64], sums: NDArray[np.float64], level: float
) -> Interval:
    """Macro-F1 of the split. Each bootstrap sample averages F1 over the labels that are a reference in it."""
    import numpy as np
    from sklearn.metrics import f1_score

    value = float(f1_score(truth, answers, labels=np.unique(truth), average="macro", zero_division=0.0))
    actual, answered, hits = np.split(sums, 3, axis=1)
    f1 = divide_or_nan(2 * hits, actual + answered)
    f1[actual == 0] = np.nan
    drawn = np.isfinite(f1)
    return compute_percentile_interval(
        value, divide_or_nan(np.where(drawn, f1, 0).sum(axis=1), drawn.sum(axis=1)), level
    )


def _compute_label_scores(
    truth: NDArray[np.int64], answers: NDArray[np.int64], labels: list[str]
) -> tuple[LabelScore, ...]:
    rows = []
    for code, label in enumerate(labels):
        actual, answered = int((truth == code).sum()), int((answers == code).sum())
        hits = int(((truth == code) & (answers == code)).sum())
        precision, recall = hits / answered if answered else None, hits / actual if actual else None
        rows.append(LabelScore(label, actual, answered, precision, recall))
    return tuple(rows)


def _summarize_latency(values: list[float]) -> LatencySummary:
    import numpy as np

    if not values:
        return LatencySummary(0, None, None, None)
    p50, p95 = np.percentile(values, [50, 95])
    return LatencySummary(len(values), float(p50), float(p95), float(np.mean(values)))


def _is_binary(kind: Kind | None) -> bool:
    """Whether every item scores 0 or 1. Then exact tests and bounds apply."""
    return kind is None or kind.metric == "accuracy"


def _compare_systems(
    a: _SystemArrays, b: _SystemArrays, sums: NDArray[np.float64], spec: EvaluationSpec, kind: Kind | None
) -> SystemComparison:
    level = spec.confidence
    both = (a.present * b.present) > 0
    n = int(both.sum())
    first, second = float(a.scores[both].sum()), float(b.scores[both].sum())
    only_first = int((both & (a.scores > b.scores)).sum())
    only_second = int((both & (b.scores > a.scores)).sum())
    draws = divide_or_nan(sums[:, 1] - sums[:, 2], sums[:, 0])
    ratio = compute_percentile_interval(
        first / second if second else None, divide_or_nan(sums[:, 1], sums[:, 2]), level
    )
    if not _is_binary(kind):
        difference = compute_percentile_interval((first - second) / n if n else None, draws, level)
        p_value = compute_permutation_p_value((a.scores - b.scores)[both], spec.seed)
        return SystemComparison(a.name, b.name, n, difference, ratio, only_first, only_second, p_value, PERMUTATION)
    difference = compute_difference_interval(only_first, only_second, n, draws, level)
    if second and only_first + only_second == 0:  # resampling shows no spread: use the bound that the difference has
        margin = bound_unseen_share(n, level) * n / second
        ratio = Interval(1.0, max(0.0, 1 - margin), 1 + margin)
    p_value = compute_mcnemar_p_value(only_first, only_second)
    return SystemComparison(a.name, b.name, n, difference, ratio, only_first, only_second, p_value)
