"""Compute all figures of a report from one predictions table and a few facts about each system."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distill_dagster.core import progress
from distill_dagster.core.errors import DistillError
from distill_dagster.evaluation.costs import compute_machine_cost
from distill_dagster.evaluation.metrics.comparisons import compare_systems
from distill_dagster.evaluation.metrics.error_origins import add_error_origins
from distill_dagster.evaluation.metrics.non_inferiority import compute_non_inferiority
from distill_dagster.evaluation.metrics.slices import compare_slices
from distill_dagster.evaluation.metrics.system_arrays import build_system_arrays, is_binary, read_answer_label
from distill_dagster.evaluation.metrics.system_scores import compute_system_score
from distill_dagster.evaluation.metrics.text_scores import compute_text_scores
from distill_dagster.evaluation.metrics.types import (
    ASSISTANT,
    BASE,
    DISTILLED,
    GOLDEN,
    NO_SLICE,
    SYSTEM_ORDER,
    TEACHER,
    Metrics,
    SplitMetrics,
    SystemComparison,
    SystemFacts,
)
from distill_dagster.evaluation.statistics import adjust_p_values, compute_bootstrap_sums
from distill_dagster.kinds.free_text import FreeTextKind

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from distill_dagster.config import EvaluationSpec
    from distill_dagster.kinds import Kind


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

    A system other than the teacher without a cost in `facts` runs on this machine. It costs what the machine costs
    while it answers, at `spec.machine_usd_per_hour`: with many items in a batch, or without a measured throughput with
    one item after the other.

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
    references = set() if unlabelled_kind else {read_answer_label(r) for r in rows["reference"].unique()}
    all_labels = list(labels) + sorted(references - set(labels))
    splits = {
        str(split): _compute_split_metrics(
            str(split), rows.filter(pl.col("split") == split), all_labels, spec, unlabelled_kind
        )
        for split in rows["split"].unique().sort()
    }
    system_facts = {}
    for system, score in splits[GOLDEN].systems.items():
        fact = SystemFacts.from_json(facts.get(system, {}))
        if fact.cost_usd_per_1k is None and system != TEACHER:
            throughput = fact.speed.requests_per_s
            seconds = 1 / throughput if throughput else score.latency.mean
            cost = compute_machine_cost(seconds, spec.machine_usd_per_hour)
            fact = replace(fact, cost_usd_per_1k=None if cost is None else 1000 * cost)
        system_facts[system] = fact
    names = (unlabelled_kind.metric, unlabelled_kind.second_metric) if unlabelled_kind else ("accuracy", "macro_f1")
    return Metrics(splits, system_facts, tuple(all_labels), spec.confidence, spec.bootstrap_samples, spec.seed, *names)


def _compute_split_metrics(
    split: str, rows: pl.DataFrame, labels: list[str], spec: EvaluationSpec, kind: Kind | None
) -> SplitMetrics:
    import numpy as np

    items = rows.unique("item_id").sort("item_id")
    ids = {item: i for i, item in enumerate(items["item_id"])}
    codes = {label: i for i, label in enumerate(labels)}
    # Kinds without labels: all items have one class, which no answer has. There is no macro-F1 and no confusion.
    truth = np.array([0 if kind else codes[read_answer_label(r)] for r in items["reference"]], dtype=np.int64)
    slices = [s if s is not None else NO_SLICE for s in items["slice"]]
    systems = []
    parts = rows.partition_by("system", as_dict=True)
    for number, ((name,), part) in enumerate(parts.items()):
        progress.report_progress(f"computing figures of {split}", number, len(parts))
        systems.append(build_system_arrays(str(name), part, ids, codes, kind))
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
    pairs = [(a, b) for i, a in enumerate(systems) for b in systems[i + 1 :]]
    named = [(a, b) for a in systems if a.name in (DISTILLED, BASE) for b in systems if a is not b]
    named += [(a, b) for a in systems if a.name == ASSISTANT for b in systems if b.name == TEACHER]
    every = {(a.name, b.name): (a, b) for a, b in [*pairs, *named]}
    for (first, second), (a, b) in every.items():
        both = a.present * b.present
        block = np.stack([both, a.scores * both, b.scores * both], axis=1)
        places[f"{first}-{second}"] = _append_columns(columns, block)
    sums = compute_bootstrap_sums(np.hstack(columns).astype(np.float32), spec.bootstrap_samples, spec.seed)

    scores = {
        s.name: compute_system_score(s, truth, slices, labels, sums[:, places[s.name]], spec, kind) for s in systems
    }
    if kind is not None and isinstance(kind, FreeTextKind):
        references = items["reference"].to_list()
        scores = {
            s.name: replace(scores[s.name], text_scores=compute_text_scores(s, references, kind)) for s in systems
        }
    by_name = {s.name: s for s in systems}
    teacher, distilled = by_name.get(TEACHER), by_name.get(DISTILLED)
    if teacher is not None and is_binary(kind):
        students = [s for s in systems if s is not teacher]
        scores |= {s.name: add_error_origins(scores[s.name], s, teacher, slices, kind) for s in students}
    compared = {
        names: compare_systems(a, b, sums[:, places["-".join(names)]], spec, kind) for names, (a, b) in every.items()
    }
    compared = _adjust_comparisons(compared, [(a.name, b.name) for a, b in pairs])
    return SplitMetrics(
        split,
        scores,
        {(a.name, b.name): compared[a.name, b.name] for a, b in named},
        tuple(compared[a.name, b.name] for a, b in pairs),
        {s.name: compare_slices(distilled, s, slices, spec, kind) for s in systems if s is not distilled}
        if distilled
        else {},
        compute_non_inferiority(distilled, teacher, spec, kind) if distilled and teacher else None,
    )


def _adjust_comparisons(
    compared: dict[tuple[str, str], SystemComparison], pairs: list[tuple[str, str]]
) -> dict[tuple[str, str], SystemComparison]:
    """Add the p-values that are corrected for all pairs; those of (b, a) are those of (a, b)."""
    adjusted = dict(zip(pairs, adjust_p_values([compared[pair].p_value for pair in pairs]), strict=True))
    return {
        (a, b): replace(c, adjusted_p_value=adjusted[(a, b) if (a, b) in adjusted else (b, a)])
        for (a, b), c in compared.items()
    }


def _append_columns(columns: list[NDArray[np.float32]], block: NDArray[np.float32]) -> slice:
    start = sum(c.shape[1] for c in columns)
    columns.append(block)
    return slice(start, start + block.shape[1])


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
