"""Render the figures of a report as Markdown, to be read without a browser or put next to a model."""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from distill_dagster.evaluation import formatting
from distill_dagster.evaluation.html_templates import TEMPLATES
from distill_dagster.evaluation.metrics import DISTILLED, TEACHER
from distill_dagster.evaluation.plain_summary import build_plain_summary
from distill_dagster.evaluation.report_page import VERDICT_TITLES
from distill_dagster.evaluation.system_names import SYSTEM_MEANINGS

if TYPE_CHECKING:
    from jinja2 import Environment

    from distill_dagster.evaluation.metrics import Metrics
    from distill_dagster.evaluation.recommendation import Recommendation
    from distill_dagster.evaluation.report import ReportInputs


def render_markdown(metrics: Metrics, verdict: Recommendation, inputs: ReportInputs) -> str:
    """Render the verdict, the three answers, and the tables of systems, slices and costs. It has no text of an item."""
    summary = build_plain_summary(metrics, verdict, inputs.task, inputs.student, inputs.get_confidence(DISTILLED))
    golden = metrics.golden
    template = _get_environment().get_template("report.md.j2")
    return template.render(
        inputs=inputs,
        metrics=metrics,
        golden=golden,
        verdict=verdict,
        verdict_title=VERDICT_TITLES[verdict.worth_it],
        summary=summary,
        meaning=dict(summary.meaning),
        system_meanings=SYSTEM_MEANINGS,
        slices=sorted({name for score in golden.systems.values() for name in score.per_slice}),
        against_teacher={c.slice: c for c in golden.slice_comparisons.get(TEACHER, ())},
        confidence=inputs.get_confidence(DISTILLED),
    )


@cache
def _get_environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(formatting.TEMPLATE_FILTERS)
    environment.filters["md"] = escape_markdown
    return environment


def escape_markdown(text: object) -> str:
    """A text in one line, whose characters have no meaning in Markdown. What stands in backticks stays code."""
    one_line = " ".join(str(text).split())
    parts = one_line.split("`") if one_line.count("`") % 2 == 0 else [one_line.replace("`", "'")]
    return "`".join(
        part.replace("|", r"\|") if number % 2 else re.sub(r"([\\*_\[\]<>|#~])", r"\\\1", part)
        for number, part in enumerate(parts)
    )
