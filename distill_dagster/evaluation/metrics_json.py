"""Write the figures of a report as plain JSON, for scripts."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from distill_dagster.evaluation.golden_items import build_errors_json
from distill_dagster.evaluation.metrics import DISTILLED
from distill_dagster.evaluation.plain_summary import build_plain_summary

if TYPE_CHECKING:
    from collections.abc import Sequence

    from distill_dagster.evaluation.golden_items import GoldenItem
    from distill_dagster.evaluation.metrics import Metrics, SplitMetrics, SystemScore
    from distill_dagster.evaluation.recommendation import Recommendation
    from distill_dagster.evaluation.report import ReportInputs


def build_metrics_json(
    metrics: Metrics, verdict: Recommendation, inputs: ReportInputs, items: Sequence[GoldenItem] = ()
) -> dict[str, Any]:
    """The figures as plain JSON. Scores are shares of 1, latencies seconds, costs US dollars. Null means unknown."""
    golden = metrics.golden
    summary = build_plain_summary(metrics, verdict, inputs.task, inputs.student, inputs.get_confidence(DISTILLED))
    systems = {}
    for name, system in golden.systems.items():
        systems[name] = _build_score(system, metrics) | asdict(metrics.facts[name])
    return dict(inputs.extra) | {
        "task": inputs.task,
        "student": inputs.student,
        "systems": systems,
        "retention": golden.retention.to_dict(),
        "steps": [{"from": step.second, "to": step.first, "retention": step.ratio.to_dict()} for step in golden.steps],
        "dataset_version": inputs.dataset_version,
        "verdict": asdict(verdict),
        "lead": summary.lead,
        "meaning": dict(summary.meaning),
        "next_steps": list(summary.next_steps),
        **_build_comparisons(golden),
        "per_slice": {name: _build_slices(system) for name, system in golden.systems.items()},
        "splits": {name: _build_split(split, metrics) for name, split in metrics.splits.items()},
        "labels": list(metrics.labels),
        "dataset": {part: dict(counts) for part, counts in inputs.dataset.items()},
        "dataset_teachers": [dict(counts) for counts in inputs.teachers],
        "calibration": {
            split: {name: measured.to_dict() for name, measured in systems.items()}
            for split, systems in inputs.reliability.items()
        },
        "temperatures": {teacher: dict(fit) for teacher, fit in inputs.temperatures.items()},
        "routing": inputs.routing.to_dict() if inputs.routing else None,
        "leaks": [dict(leak) for leak in inputs.leaks],
        "errors": build_errors_json(items),
        "golden_looks": [dict(look) for look in inputs.golden_looks],
        "settings_hash": inputs.settings_hash,
        "statistics": {
            "confidence": metrics.confidence,
            "bootstrap_samples": metrics.bootstrap_samples,
            "seed": metrics.seed,
        },
        "latency_method": inputs.latency_method,
        "cost_method": inputs.cost_method,
        "win_rate": metrics.win_rate.to_dict() if metrics.win_rate else None,
        "distillation": metrics.distillation.to_json() if metrics.distillation else None,
        "notice": inputs.notice,
        "terms": [dict(terms) for terms in inputs.terms],
        "versions": dict(inputs.versions),
        "created_at": inputs.created_at,
    }


def _build_comparisons(split: SplitMetrics) -> dict[str, Any]:
    origins = {name: system.errors for name, system in split.systems.items() if system.errors is not None}
    return {
        "comparisons": {f"{first} - {second}": c.to_dict() for (first, second), c in split.comparisons.items()},
        "pairs": [pair.to_dict() for pair in split.pairs],
        "slice_comparisons": {
            f"{DISTILLED} - {other}": {c.slice: c.to_dict() for c in compared}
            for other, compared in split.slice_comparisons.items()
        },
        "non_inferiority": split.non_inferiority.to_dict() if split.non_inferiority else None,
        "error_origins": {name: found.to_dict() for name, found in origins.items()},
        "error_origins_per_slice": {
            name: {key: found.to_dict() for key, found in split.systems[name].errors_per_slice.items()}
            for name in origins
        },
    }


def _build_slices(system: SystemScore) -> dict[str, dict[str, Any]]:
    # `accuracy` is the older name of `score`; scripts read it whatever the kind's metric is.
    return {
        s.slice: {"n": s.n, "score": s.score.value, "accuracy": s.score.value, "low": s.score.low, "high": s.score.high}
        for s in system.slices
    }


def _build_score(system: SystemScore, metrics: Metrics) -> dict[str, Any]:
    return {
        "metric": metrics.metric,
        "score": system.score.to_dict(),
        "wilson": system.wilson.to_dict() if system.wilson else None,
        **_build_second_score(system, metrics),
        "text_scores": dict(system.text_scores),
        "n": system.n,
        "latency_s": asdict(system.latency),
    }


def _build_second_score(system: SystemScore, metrics: Metrics) -> dict[str, Any]:
    return {metrics.second_metric: system.second_score.to_dict()} if metrics.second_metric else {}


def _build_split(split: SplitMetrics, metrics: Metrics) -> dict[str, Any]:
    systems = {}
    for name, system in split.systems.items():
        systems[name] = {
            **_build_score(system, metrics),
            metrics.metric: system.score.to_dict(),
            "per_slice": _build_slices(system),
            "per_label": [asdict(label) for label in system.per_label],
            "confusion": [list(cell) for cell in system.confusion],
        }
    return {"systems": systems, **_build_comparisons(split), "retention": split.retention.to_dict()}
