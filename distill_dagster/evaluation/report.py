"""Write the report of one student: an HTML file that opens offline, Markdown, JSON, and the predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.evaluation.golden_items import list_golden_items
from distill_dagster.evaluation.metrics import GOLDEN
from distill_dagster.evaluation.metrics_json import build_metrics_json
from distill_dagster.evaluation.report_markdown import render_markdown
from distill_dagster.evaluation.report_page import render_html
from distill_dagster.tables import schemas
from distill_dagster.tables.parquet import write_parquet

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.curation.soft_labels.reliability import Reliability
    from distill_dagster.evaluation.golden_items import NearestRow
    from distill_dagster.evaluation.metrics import Metrics
    from distill_dagster.evaluation.recommendation import Recommendation
    from distill_dagster.evaluation.risk_coverage import RoutingSummary
    from distill_dagster.kinds import Kind

REPORT_FILE, MARKDOWN_FILE = "report.html", "report.md"
METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.parquet"


@dataclass(frozen=True)
class ReportInputs:
    """Everything in a report except the figures.

    Attributes:
        texts: item id to its text, for the table of items.
        nearest: by item id, the training rows that are nearest to an error of the student (`find_nearest_rows`).
        nearest_missing: one sentence on why there are none; empty if there is no reason to say.
        kind: scores answers that are graded; None: they are right or wrong, as the predictions say.
        dataset: {"kept": {split: rows}, "dropped": {reason: rows}}.
        teachers: rows by teacher, as `count_rows_by_teacher` returns them.
        reliability: by split and system, how well confidences are calibrated (`measure_system_reliability`).
        temperatures: by teacher, the fit of the temperature that the dataset's soft labels have
            (`TemperatureFit.to_dict`); empty if they are as the teacher stated them.
        routing: a router between the student and its teacher; None if the student states no confidence.
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
    nearest: Mapping[str, Sequence[NearestRow]] = field(default_factory=dict)
    nearest_missing: str = ""
    kind: Kind | None = None
    dataset: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    teachers: Sequence[Mapping[str, Any]] = ()
    reliability: Mapping[str, Mapping[str, Reliability]] = field(default_factory=dict)
    temperatures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    routing: RoutingSummary | None = None
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

    def get_confidence(self, system: str) -> Reliability | None:
        """How well a system's confidences on golden are calibrated; None if it states none."""
        return self.reliability.get(GOLDEN, {}).get(system)


def write_report(
    folder: Path, predictions: pl.DataFrame, metrics: Metrics, verdict: Recommendation, inputs: ReportInputs
) -> None:
    """Write report.html, report.md, metrics.json and predictions.parquet into an existing folder.

    Raises:
        SchemaError: `predictions` does not have the declared columns.
    """
    table = schemas.conform_to_schema(predictions, schemas.PREDICTIONS, ("system", "split", "item_id"))
    write_parquet(table, folder / PREDICTIONS_FILE, {})
    items = list_golden_items(table, inputs.texts, inputs.nearest, inputs.kind)
    figures = build_metrics_json(metrics, verdict, inputs, items)
    (folder / METRICS_FILE).write_text(
        json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False), encoding="utf-8"
    )
    (folder / MARKDOWN_FILE).write_text(render_markdown(metrics, verdict, inputs), encoding="utf-8")
    (folder / REPORT_FILE).write_text(render_html(metrics, verdict, inputs, items), encoding="utf-8")
