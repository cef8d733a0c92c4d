"""The page about the trials of one student: what was tried, what came out, and the change that is proposed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from distill_dagster.core import plots
from distill_dagster.core.files import write_atomically
from distill_dagster.evaluation.formatting import format_metric_name_in_sentence
from distill_dagster.evaluation.html_templates import get_html_environment
from distill_dagster.evaluation.statistics import Interval
from distill_dagster.tuning.proposal import Proposal
from distill_dagster.tuning.search_space import SearchSetting, format_settings, format_value
from distill_dagster.tuning.study import FinishedTrial

TEMPLATES = Path(__file__).resolve().parent / "templates"


@dataclass(frozen=True)
class TuningResult:
    """What tuning found.

    Attributes:
        current: the trial with the settings that task.yaml had.
        has_failed_with_current: whether the settings that task.yaml had could not be trained.
        lead: the score of `best` minus that of `current` on the same items; None if they are one trial.
        proposal: the change of task.yaml to the settings of `best`. None if task.yaml cannot be changed.
        split: where the items are from: dev or validation.
    """

    task: str
    student: str
    space: Sequence[SearchSetting]
    trials: Sequence[FinishedTrial]
    best: FinishedTrial | None
    current: FinishedTrial | None
    has_failed_with_current: bool
    lead: Interval | None
    proposal: Proposal | None
    metric: str
    split: str
    items: int
    confidence: float

    @property
    def summary(self) -> str:
        """What came out, in one or two sentences."""
        metric = format_metric_name_in_sentence(self.metric)
        if self.best is None:
            return "No trial was completed."
        assert self.best.result is not None
        where = f"{metric} on {self.items} {self.split} items"
        if self.best == self.current:
            return f"No trial was better than the settings of task.yaml: {self.best.result.score:.3f} {where}."
        found = f"Trial {self.best.number} has {self.best.result.score:.3f} {where}"
        if self.lead is None or self.lead.low is None or self.lead.high is None or self.lead.value is None:
            missing = "could not be trained" if self.has_failed_with_current else "were not tried in this study"
            return f"{found}. The settings of task.yaml {missing}."
        span = f"{self.lead.value:+.3f}, {self.confidence:.0%} interval {self.lead.low:+.3f} to {self.lead.high:+.3f}"
        return f"{found} ({span}, against the settings of task.yaml). {self.caution}"

    @property
    def caution(self) -> str:
        """How far the lead can be trusted."""
        chosen = f"It was chosen among {len(self.trials)} trials on the same items, so its lead looks larger than it is"
        if self.lead is not None and self.lead.low is not None and self.lead.low <= 0:
            return f"{chosen}, and these items do not show that it is better."
        return f"{chosen}."


def write_page(result: TuningResult, folder: Path) -> Path:
    """Write `<student>.html` and its plot `<student>.png` to a folder. Return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / f"{result.student}.html"
    images = _draw_plots(result)
    if "history" in images:
        write_atomically(page.with_suffix(".png"), images["history"])
    write_atomically(page, _render(result, images))
    return page


def _draw_plots(result: TuningResult) -> dict[str, bytes]:
    scored = [(trial, trial.result.score) for trial in result.trials if trial.result]
    if not scored:
        return {}
    metric = format_metric_name_in_sentence(result.metric)
    best = accumulate((score for _, score in scored), max)
    series = {
        "trial": [(float(trial.number), score) for trial, score in scored],
        "best so far": [(float(trial.number), score) for (trial, _), score in zip(scored, best, strict=True)],
    }
    panels = {s.name: [(trial.settings[s.name], score) for trial, score in scored] for s in result.space}
    title = f"Tuning {result.student}"
    label = f"{metric} on {result.split}"
    return {
        "history": plots.plot_lines(series, title, "trial", label),
        "settings": plots.plot_panels(panels, f"{title}, by setting", label),
    }


def _render(result: TuningResult, images: dict[str, bytes]) -> str:
    environment = get_html_environment(TEMPLATES)
    environment.filters.update({"value": format_value, "settings": format_settings})
    shown = {name: (plots.to_data_uri(png), plots.compute_css_width(png)) for name, png in images.items()}
    return environment.get_template("tuning.html.j2").render(result=result, images=shown)
