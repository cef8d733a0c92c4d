"""Write the report of one student: an HTML file that opens offline, the figures as JSON, and the predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core import plots
from distill_dagster.evaluation import formatting
from distill_dagster.evaluation.golden_looks import append_golden_look, read_golden_looks
from distill_dagster.evaluation.metrics import (
    DISTILLED,
    TEACHER,
    Metrics,
    SplitMetrics,
    SystemScore,
    build_confusion_table,
)
from distill_dagster.evaluation.plain_summary import SYSTEM_MEANINGS, build_plain_summary
from distill_dagster.evaluation.recommendation import Recommendation
from distill_dagster.tables import schemas
from distill_dagster.tables.parquet import write_parquet

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.curation.soft_labels.reliability import Reliability

__all__ = [
    "ReportInputs",
    "append_golden_look",
    "build_metrics_json",
    "read_golden_looks",
    "write_report",
]

REPORT_FILE, METRICS_FILE, PREDICTIONS_FILE = "report.html", "metrics.json", "predictions.parquet"
TEMPLATES = Path(__file__).resolve().parent / "templates"
_MAX_CONFUSION_LABELS = 24
"""Labels in the confusion heat map. If a task has more, only those with most errors are drawn."""


@dataclass(frozen=True)
class ReportInputs:
    """Everything in a report except the figures.

    Attributes:
        texts: item id to its text, for the examples of disagreement.
        dataset: {"kept": {split: rows}, "dropped": {reason: rows}}.
        teachers: rows by teacher, as `count_rows_by_teacher` returns them.
        reliability: by split and system, how well confidences are calibrated (`measure_system_reliability`).
        temperatures: by teacher, the fit of the temperature that the dataset's soft labels have
            (`TemperatureFit.to_dict`); empty if they are as the teacher stated them.
        leaks: rows that were left out because they contain golden or dev rows: `text`, `slice`, `why`.
        training: series name to (step, value) points, e.g. "training loss" and "validation loss". Series with the same
            last word share a plot. None if there is no log.
        how_trained: one sentence on the objective, the prompts and the method; empty if the log does not say.
        kept_epoch: one sentence on which epoch of the training is kept; empty if none was chosen.
        golden_looks: entries of the log, oldest first, including this look.
        latency_method: one sentence on how latency was measured.
        cost_method: sentences on where the costs come from.
        versions: package name to version.
        notice: what a reader needs to know before the figures, e.g. that teacher and student share their base.
        terms: the provider's terms of each teacher, and of a judge and an imaginer that took part, as
            `ProviderTerms.to_json` returns them.
        extra: further top-level keys of metrics.json. The keys of this module win.
    """

    task: str
    student: str
    dataset_version: str
    settings_hash: str
    created_at: str
    texts: Mapping[str, str]
    dataset: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    teachers: Sequence[Mapping[str, Any]] = ()
    reliability: Mapping[str, Mapping[str, Reliability]] = field(default_factory=dict)
    temperatures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    leaks: Sequence[Mapping[str, str]] = ()
    training: Mapping[str, Sequence[tuple[float, float]]] | None = None
    how_trained: str = ""
    kept_epoch: str = ""
    golden_looks: Sequence[Mapping[str, Any]] = ()
    latency_method: str = "not measured"
    cost_method: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    notice: str | None = None
    terms: Sequence[Mapping[str, Any]] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_report(
    folder: Path, predictions: pl.DataFrame, metrics: Metrics, verdict: Recommendation, inputs: ReportInputs
) -> None:
    """Write report.html, metrics.json and predictions.parquet into an existing folder.

    Raises:
        SchemaError: `predictions` does not have the declared columns.
    """
    table = schemas.conform_to_schema(predictions, schemas.PREDICTIONS, ("system", "split", "item_id"))
    write_parquet(table, folder / PREDICTIONS_FILE, {})
    figures = build_metrics_json(metrics, verdict, inputs)
    (folder / METRICS_FILE).write_text(
        json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8"
    )
    (folder / REPORT_FILE).write_text(render_html(table, metrics, verdict, inputs), encoding="utf-8")


def build_metrics_json(metrics: Metrics, verdict: Recommendation, inputs: ReportInputs) -> dict[str, Any]:
    """The figures as plain JSON. Scores are shares of 1, latencies seconds, costs US dollars. Null means unknown."""
    golden = metrics.golden
    summary = build_plain_summary(metrics, verdict, inputs.task, inputs.student)
    systems = {}
    for name, system in golden.systems.items():
        systems[name] = {
            "metric": metrics.metric,
            "score": system.score.to_dict(),
            **_build_second_score(system, metrics),
            "n": system.n,
            "latency_s": asdict(system.latency),
            **asdict(metrics.facts[name]),
        }
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
        "comparisons": _build_comparisons(golden),
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
        "leaks": [dict(leak) for leak in inputs.leaks],
        "golden_looks": [dict(look) for look in inputs.golden_looks],
        "settings_hash": inputs.settings_hash,
        "statistics": {
            "confidence": metrics.confidence,
            "bootstrap_samples": metrics.bootstrap_samples,
            "seed": metrics.seed,
        },
        "latency_method": inputs.latency_method,
        "cost_method": inputs.cost_method,
        "distillation": metrics.distillation.to_json() if metrics.distillation else None,
        "notice": inputs.notice,
        "terms": [dict(terms) for terms in inputs.terms],
        "versions": dict(inputs.versions),
        "created_at": inputs.created_at,
    }


def render_html(predictions: pl.DataFrame, metrics: Metrics, verdict: Recommendation, inputs: ReportInputs) -> str:
    """Render one self-contained page: no script, no reference to other files, every value escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(formatting.TEMPLATE_FILTERS)
    distilled = metrics.golden.systems[DISTILLED]
    map_labels = _choose_confusion_labels(distilled, metrics.labels)
    return environment.get_template("report.html.j2").render(
        inputs=inputs,
        verdict=verdict,
        metrics=metrics,
        golden=metrics.golden,
        distilled=distilled,
        verdict_title={True: "Worth it", False: "Not worth it", None: "Undecided"}[verdict.worth_it],
        summary=build_plain_summary(metrics, verdict, inputs.task, inputs.student),
        system_meanings=SYSTEM_MEANINGS,
        others=[split for name, split in metrics.splits.items() if split is not metrics.golden],
        slices=sorted({name for score in metrics.golden.systems.values() for name in score.per_slice}),
        mistakes=formatting.find_mistakes(distilled),
        disagreements=formatting.find_disagreements(predictions, inputs.texts),
        tokens={n: f.tokens_per_request for n, f in metrics.facts.items() if f.tokens_per_request is not None},
        map_is_partial=len(map_labels) < len(metrics.labels),
        images=_draw_plots(metrics, map_labels, inputs),
        calibrated_on=_select_drawn_reliability(inputs)[0],
        reliability_tables=_select_drawn_reliability(inputs)[1],
        confident_systems=list(dict.fromkeys(name for systems in inputs.reliability.values() for name in systems)),
        interval_words=", ".join(
            f"{n} {formatting.format_interval(s.score)}" for n, s in metrics.golden.systems.items()
        ),
        curve_words={name: formatting.describe_curves(series) for name, series in _group_curves(inputs).items()},
        own_machine=any(formatting.format_cost(n, f) == formatting.OWN_MACHINE for n, f in metrics.facts.items()),
    )


def _draw_plots(metrics: Metrics, map_labels: Sequence[str], inputs: ReportInputs) -> dict[str, tuple[str, int]]:
    """Plots as (data URI, width in CSS pixels). Plots without data are left out."""
    drawn = {}
    rows = [
        (name, score.score.value, score.score.low, score.score.high) for name, score in metrics.golden.systems.items()
    ]
    known = [(n, v, lo, hi) for n, v, lo, hi in rows if v is not None and lo is not None and hi is not None]
    drawn["intervals"] = plots.plot_intervals(
        known,
        "",
        f"{formatting.format_metric_name_in_sentence(metrics.metric)} on golden, "
        f"{100 * metrics.confidence:g} % interval",
    )
    if metrics.labels:
        columns, counts = build_confusion_table(metrics.golden.systems[DISTILLED], metrics.labels)
        rows_at = [metrics.labels.index(label) for label in map_labels]
        columns_at = [columns.index(label) for label in map_labels] + list(range(len(metrics.labels), len(columns)))
        cut = [[counts[i][j] for j in columns_at] for i in rows_at]
        drawn["confusion"] = plots.plot_confusion(map_labels, [columns[j] for j in columns_at], cut, "")
    for name, series in _group_curves(inputs).items():
        label = name.removeprefix("training: ") if len(series) > 1 else next(iter(series))
        drawn[name] = plots.plot_lines(series, "", "step", label)
    if inputs.dataset.get("dropped"):
        drawn["dropped"] = plots.plot_counts(inputs.dataset["dropped"], "", "rows left out, by reason")
    if reliability := _select_drawn_reliability(inputs)[1]:
        drawn["reliability"] = plots.plot_reliability(
            {name: measured.list_points() for name, measured in reliability.items()}, ""
        )
    return {name: (plots.to_data_uri(png), plots.compute_css_width(png)) for name, png in drawn.items()}


def _select_drawn_reliability(inputs: ReportInputs) -> tuple[str, dict[str, Reliability]]:
    """The split whose reliability table is shown, dev if it has figures, and those of teacher and distilled student."""
    split = next(iter(inputs.reliability), "")
    systems = inputs.reliability.get(split, {})
    return split, {name: systems[name] for name in (TEACHER, DISTILLED) if name in systems}


def _group_curves(inputs: ReportInputs) -> dict[str, dict[str, Sequence[tuple[float, float]]]]:
    """The series of the training log that share a plot, by the plot's name."""
    curves: dict[str, dict[str, Sequence[tuple[float, float]]]] = {}
    for name, points in (inputs.training or {}).items():
        if points:
            curves.setdefault(f"training: {(name.split() or [name])[-1]}", {})[name] = points
    return curves


def _choose_confusion_labels(score: SystemScore, labels: Sequence[str]) -> list[str]:
    """Labels of the heat map in the task's order: all, or those with most errors as reference or as answer."""
    if len(labels) <= _MAX_CONFUSION_LABELS:
        return list(labels)
    errors = dict.fromkeys(labels, 0)
    for reference, answer, items in score.confusion:
        for label in {reference, answer} & errors.keys() if reference != answer else ():
            errors[label] += items
    most = set(sorted(labels, key=lambda label: -errors[label])[:_MAX_CONFUSION_LABELS])
    return [label for label in labels if label in most]


def _build_comparisons(split: SplitMetrics) -> dict[str, dict[str, Any]]:
    return {f"{first} - {second}": c.to_dict() for (first, second), c in split.comparisons.items()}


def _build_slices(system: SystemScore) -> dict[str, dict[str, float]]:
    # `accuracy` is the older name of `score`; scripts read it whatever the kind's metric is.
    return {name: {"n": n, "score": score, "accuracy": score} for name, (n, score) in system.per_slice.items()}


def _build_second_score(system: SystemScore, metrics: Metrics) -> dict[str, Any]:
    return {metrics.second_metric: system.second_score.to_dict()} if metrics.second_metric else {}


def _build_split(split: SplitMetrics, metrics: Metrics) -> dict[str, Any]:
    systems = {}
    for name, system in split.systems.items():
        systems[name] = {
            "n": system.n,
            "metric": metrics.metric,
            "score": system.score.to_dict(),
            metrics.metric: system.score.to_dict(),
            **_build_second_score(system, metrics),
            "latency_s": asdict(system.latency),
            "per_slice": _build_slices(system),
            "per_label": [asdict(label) for label in system.per_label],
            "confusion": [list(cell) for cell in system.confusion],
        }
    return {"systems": systems, "comparisons": _build_comparisons(split), "retention": split.retention.to_dict()}
