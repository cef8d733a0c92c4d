"""Say what a report means and what to do next, in plain words: for a reader who does not read tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_dagster.evaluation.formatting import (
    find_mistakes,
    format_dollars,
    format_metric_name,
    format_milliseconds,
)
from distill_dagster.evaluation.metrics import (
    BASE,
    CENTROID,
    DISTILLED,
    LINEAR_PROBE,
    NO_ANSWER,
    SEED_ONLY,
    SLICE_LABEL,
    TEACHER,
    Metrics,
)
from distill_dagster.evaluation.money_verdict import describe_money
from distill_dagster.evaluation.recommendation import (
    NOTABLE_GAIN,
    ProbeResult,
    Recommendation,
    is_teacher_weak,
    list_rivals,
)
from distill_dagster.evaluation.statistics import estimate_needed_items
from distill_dagster.evaluation.switch_save_risk import explain_figures, is_accuracy, round_up
from distill_dagster.evaluation.system_names import SYSTEM_TITLES, describe_system

if TYPE_CHECKING:
    from distill_dagster.curation.soft_labels.reliability import Reliability

_ADAPTERS = {DISTILLED: "student_adapter", SEED_ONLY: "seed_only_adapter", SLICE_LABEL: "slice_label_adapter"}
_HOW_TO_USE = {
    TEACHER: "Keep the teacher: the student saves little or no money, is not faster, and not clearly better.",
    BASE: "Use the untrained model as it is; there is nothing to train.",
    CENTROID: "Use a sentence embedding model and each label's mean embedding; there is nothing to train.",
}
_PROBE_IN_LEAD: dict[ProbeResult, str] = {
    "better": "But a linear probe, trained on the same answers, is better",
    "equal": "A linear probe, trained on the same answers, is as good",
    "unclear": "A linear probe, trained on the same answers, may be as good",
}
_PROBE_STEPS: dict[ProbeResult, str] = {
    "better": "Use the linear probe",
    "equal": "Or use the linear probe, which is as good and needs no fine-tuning",
    "unclear": "Compare with the linear probe on more items; it needs no fine-tuning",
}
_POWER = 0.8
"""The chance of seeing a difference of `NOTABLE_GAIN` with the number of items that is recommended."""
_MANY_MISTAKES = 3
"""A confusion of two labels is worth a hint if it happened this often."""


@dataclass(frozen=True)
class PlainSummary:
    """The verdict in a sentence or two, its key figures, what it means, and what to do next.

    An entry of `figures` is (name, value, what to compare it with), one of `meaning` (first words, sentences).
    """

    lead: str
    figures: tuple[tuple[str, str, str], ...]
    meaning: tuple[tuple[str, str], ...]
    next_steps: tuple[str, ...]


def build_plain_summary(
    metrics: Metrics, verdict: Recommendation, task: str, student: str, confidence: Reliability | None = None
) -> PlainSummary:
    """Put a verdict and the figures behind it into plain words.

    Args:
        confidence: how well the student's confidences on golden are calibrated; None if it states none.
    """
    return PlainSummary(
        _build_lead(metrics, verdict),
        tuple(_list_key_figures(metrics, verdict)),
        tuple(explain_figures(metrics, verdict, confidence)),
        tuple(_list_next_steps(metrics, verdict, task, student)),
    )


def _build_lead(metrics: Metrics, verdict: Recommendation) -> str:
    """The verdict in one or two sentences, with the scores that it is about."""
    other = describe_system(verdict.best_other)
    if verdict.worth_it is True:
        lead = f"Distilling pays: {_compare_scores(metrics, verdict.best_other)}."
    elif verdict.best_other == TEACHER:
        lead = f"Distilling does not pay here. {describe_money(metrics)} Better keep the teacher."
    elif verdict.worth_it is False:
        lead = f"Distilling does not pay here: {_compare_scores(metrics, verdict.best_other)}. Better use {other}."
    elif not verdict.best_other:
        lead = "There is nothing yet to compare the distilled student with."
    else:
        rivals = " or ".join(describe_system(name) for name in list_rivals(metrics)[:2])
        lead = f"The test is too small to tell whether the distilled student is better than {rivals}."
    if verdict.probe not in _PROBE_IN_LEAD:
        return lead
    score = metrics.golden.systems[LINEAR_PROBE].score.value or 0.0
    return f"{lead} {_PROBE_IN_LEAD[verdict.probe]} ({100 * score:.0f})."


def _compare_scores(metrics: Metrics, other: str) -> str:
    """The scores of the student and of the best system without a teacher, as a clause."""
    own, best = (metrics.golden.systems[name].score.value or 0.0 for name in (DISTILLED, other))
    title = SYSTEM_TITLES.get(other, other)
    if is_accuracy(metrics):
        return (
            f"the student answers {100 * own:.0f} of 100 right, the best without a teacher {100 * best:.0f} ({title})"
        )
    name = format_metric_name(metrics.metric)
    return f"the student's {name} is {own:.2f}, that of the best without a teacher {best:.2f} ({title})"


def _list_key_figures(metrics: Metrics, verdict: Recommendation) -> Iterator[tuple[str, str, str]]:
    """What the student reaches, how fast it is, what it costs, and when it has paid for itself, if that is known."""
    systems, facts = metrics.golden.systems, metrics.facts
    others = dict.fromkeys([TEACHER, verdict.best_other, LINEAR_PROBE])
    scores = [(name, systems[name].score.value) for name in others if name in systems]
    compared = [f"{SYSTEM_TITLES.get(name, name)} {score:.2f}" for name, score in scores if score is not None]
    yield format_metric_name(metrics.metric), f"{systems[DISTILLED].score.value or 0.0:.2f}", ", ".join(compared)
    own, teacher = systems[DISTILLED].latency.p50, systems[TEACHER].latency.p50 if TEACHER in systems else None
    if own:
        yield "One answer takes", format_milliseconds(own), f"teacher {format_milliseconds(teacher)}" if teacher else ""
    cost, billed = (facts[name].cost_usd_per_1k if name in facts else None for name in (DISTILLED, TEACHER))
    if cost is not None:
        compared_cost = "" if billed is None else f"teacher {format_dollars(billed)}"
        yield "1,000 answers cost", format_dollars(cost), compared_cost
    distillation = metrics.distillation
    if distillation is not None and distillation.usd is not None and distillation.break_even is not None:
        requests = f"{round_up(distillation.break_even)} requests"
        yield "Paid for itself after", requests, f"distilling took {format_dollars(distillation.usd)}"


def _list_next_steps(metrics: Metrics, verdict: Recommendation, task: str, student: str) -> Iterator[str]:
    """What to do, the most important first."""
    if verdict.worth_it is None:
        yield from _list_steps_to_decide(metrics, task)
    elif not (verdict.worth_it and verdict.probe == "better"):
        chosen = DISTILLED if verdict.worth_it else verdict.best_other
        yield _describe_use(chosen, task, student)
    if verdict.probe in _PROBE_STEPS:
        yield (
            f"{_PROBE_STEPS[verdict.probe]}: a logistic regression on sentence embeddings, trained on the rows of "
            "`filtered_dataset`."
        )
    facts = metrics.facts.get(TEACHER)
    if verdict.worth_it is not True:
        if facts is not None and facts.model and facts.model.startswith("embedded/"):
            yield (
                "Ask a larger teacher: the embedded one is small and only for trying things out. Change "
                f"`teacher.model` in task.yaml; `distill estimate {task}` shows the price before anything is paid."
            )
        elif is_teacher_weak(metrics):
            yield "Choose a stronger teacher, or improve its instructions: it is weaker than the untrained student."
    distilled = metrics.golden.systems[DISTILLED]
    worst = next(iter(find_mistakes(distilled, most=1)), None)
    if worst is not None and worst[2] >= _MANY_MISTAKES:
        reference, answer, items = worst
        mistake = "without a label" if answer == NO_ANSWER else f"as “{answer}”"
        yield (
            f"Look at the most frequent mistake: “{reference}” was answered {mistake} {items} times. Sharpen the "
            "descriptions of the labels, or add prompts and examples of them."
        )
    if verdict.worth_it is True:
        yield f"Keep it up to date: after a change of prompts, `distill refresh {task}` makes only what changed."


def _describe_use(chosen: str, task: str, student: str) -> str:
    if chosen in _ADAPTERS:
        place = f"its adapter is in `lake/{task}/{_ADAPTERS[chosen]}/{student}/` below DISTILL_HOME (`data/`)"
        read = "Read the mistakes below before it goes into production."
        if chosen != DISTILLED:
            return f"Use {chosen}: {place}. {read}"
        release = f"`distill release {task} --student {student}` makes a folder that you can deploy"
        return f"Use the distilled student: {release}; {place}. {read}"
    return _HOW_TO_USE.get(chosen, f"Use {chosen}.")


def _list_steps_to_decide(metrics: Metrics, task: str) -> Iterator[str]:
    rivals = [metrics.golden.comparisons[DISTILLED, name] for name in list_rivals(metrics)]
    if not rivals:
        yield f"Run `distill run {task}` to the end, so that there are other systems to compare with."
        return
    items = min(c.n for c in rivals)
    needed = [estimate_needed_items(c.difference, c.n, NOTABLE_GAIN, metrics.confidence, _POWER) for c in rivals]
    most = max((number for number in needed if number is not None), default=0)
    gain = f"{100 * NOTABLE_GAIN:.0f} points"
    if most > items:
        yield (
            f"Label more test items: to see a difference of {gain} reliably takes about {round_up(most)} rows in "
            f"golden.jsonl. Now there are {items}."
        )
    else:
        yield (
            f"Decide by cost and effort: with these {items} items a difference of {gain} would probably have shown, so "
            "the real one is likely smaller."
        )
    yield f"Until that is decided, what takes less work is the safer choice: {rivals[0].second}."
