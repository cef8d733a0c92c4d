"""Render the report of one student as one page that opens offline."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from distill_dagster.core import plots
from distill_dagster.evaluation import formatting
from distill_dagster.evaluation.golden_items import OUTCOMES
from distill_dagster.evaluation.html_templates import TEMPLATES, get_html_environment
from distill_dagster.evaluation.metrics import DISTILLED, TEACHER, Metrics, SystemScore, build_confusion_table
from distill_dagster.evaluation.plain_summary import build_plain_summary
from distill_dagster.evaluation.system_names import SYSTEM_MEANINGS

if TYPE_CHECKING:
    from distill_dagster.curation.soft_labels.reliability import Reliability
    from distill_dagster.evaluation.golden_items import GoldenItem
    from distill_dagster.evaluation.recommendation import Recommendation
    from distill_dagster.evaluation.report import ReportInputs

VERDICT_TITLES = {True: "Worth it", False: "Not worth it", None: "Undecided"}
_SIZE_COLUMNS = (
    ("peak_mb", "Peak memory", formatting.format_megabytes),
    ("parameters", "Parameters", formatting.format_count),
    ("bytes", "Size", formatting.format_size),
)
_MAX_CONFUSION_LABELS = 24
"""Labels in the confusion heat map. If a task has more, only those with most errors are drawn."""


def render_html(metrics: Metrics, verdict: Recommendation, inputs: ReportInputs, items: Sequence[GoldenItem]) -> str:
    """Render one self-contained page: no reference to other files, every value escaped.

    Its content security policy allows one script, by its hash: the filter of the table of items.
    """
    from markupsafe import Markup

    script = (TEMPLATES / "report.js.j2").read_text(encoding="utf-8")
    distilled = metrics.golden.systems[DISTILLED]
    summary = build_plain_summary(metrics, verdict, inputs.task, inputs.student, inputs.get_confidence(DISTILLED))
    map_labels = _choose_confusion_labels(distilled, metrics.labels)
    template = get_html_environment().get_template("report.html.j2")
    return template.render(
        inputs=inputs,
        verdict=verdict,
        metrics=metrics,
        golden=metrics.golden,
        distilled=distilled,
        verdict_title=VERDICT_TITLES[verdict.worth_it],
        summary=summary,
        meaning=dict(summary.meaning),
        size_columns=_SIZE_COLUMNS,
        system_meanings=SYSTEM_MEANINGS,
        against_teacher={c.slice: c for c in metrics.golden.slice_comparisons.get(TEACHER, ())},
        money_words=formatting.describe_curves(metrics.distillation.build_curves() if metrics.distillation else {}),
        others=[split for name, split in metrics.splits.items() if split is not metrics.golden],
        slices=sorted({name for score in metrics.golden.systems.values() for name in score.per_slice}),
        mistakes=formatting.find_mistakes(distilled),
        items=items,
        items_are_graded=not metrics.labels and metrics.metric != "accuracy",
        outcomes=_count_outcomes(items),
        item_slices=sorted({item.slice for item in items if item.slice}),
        has_confidence=any(answer.confidence is not None for item in items for answer in item.answers.values()),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
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


def _count_outcomes(items: Sequence[GoldenItem]) -> list[tuple[str, str, int]]:
    """The outcomes that occur, as (name, title, items), in their order."""
    counts = Counter(item.outcome for item in items)
    return [(name, title, counts[name]) for name, title in OUTCOMES.items() if counts[name]]


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
    if metrics.distillation and (curves := metrics.distillation.build_curves()):
        drawn["money"] = plots.plot_lines(curves, "", "requests answered", "USD spent")
    if inputs.dataset.get("dropped"):
        drawn["dropped"] = plots.plot_counts(inputs.dataset["dropped"], "", "rows left out, by reason")
    if reliability := _select_drawn_reliability(inputs)[1]:
        drawn["reliability"] = plots.plot_reliability(
            {name: measured.list_points() for name, measured in reliability.items()}, ""
        )
    if inputs.routing:
        drawn["routing"] = plots.plot_lines(
            inputs.routing.list_points(), "", "share answered by the student", "right, student and teacher together"
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
