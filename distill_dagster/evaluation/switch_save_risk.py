"""Answer the three questions of a report's first screen: may I switch, what do I save, and what do I risk?"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from distill_dagster.core.formatting import count_noun, format_seconds
from distill_dagster.evaluation.formatting import (
    format_days,
    format_dollars,
    format_interval,
    format_metric_name,
    format_milliseconds,
    format_points,
    is_local,
)
from distill_dagster.evaluation.metrics import ASSISTANT, DISTILLED, LINEAR_PROBE, TEACHER, Metrics
from distill_dagster.evaluation.recommendation import Recommendation, list_rivals
from distill_dagster.evaluation.system_names import SYSTEM_TITLES

if TYPE_CHECKING:
    from distill_dagster.curation.soft_labels.reliability import Reliability
    from distill_dagster.evaluation.costs import DistillationCost


def explain_figures(
    metrics: Metrics, verdict: Recommendation, confidence: Reliability | None = None
) -> Iterator[tuple[str, str]]:
    """What the figures mean, as (first words, sentences): Switch, Quality, Steps, Cost, Speed and Risk.

    Args:
        confidence: how well the student's confidences on golden are calibrated; None if it states none.
    """
    golden = metrics.golden
    own, teacher = golden.systems[DISTILLED], golden.systems.get(TEACHER)
    rivals = list_rivals(metrics)[:2] or [verdict.best_other]
    yield "Switch", _describe_switch(metrics)
    yield "Quality", _describe_quality(metrics, [DISTILLED, TEACHER, *rivals, LINEAR_PROBE])
    if steps := _describe_steps(metrics):
        yield "Steps", steps
    yield "Cost", _describe_cost(metrics)
    if own.latency.p50:
        yield "Speed", _describe_speed(own.latency.p50, teacher.latency.p50 if teacher is not None else None)
    nothing = "No figure shows one: golden has one slice, and its answers are graded, not right or wrong."
    yield "Risk", " ".join(_list_risks(metrics, confidence)) or nothing


def _describe_switch(metrics: Metrics) -> str:
    """Whether the student may take the teacher's place: is it at most the margin worse?"""
    found = metrics.golden.non_inferiority
    if found is None or found.difference.value is None:
        return "Unknown: the teacher answered no golden item, so there is nothing to replace."
    points = f"{100 * found.margin:g} points"
    measured = f"{format_points(found.difference)} points"
    if found.is_shown:
        return f"Yes: the student is at most {points} below the teacher, and the test shows it ({measured})."
    if found.is_shown is False:
        return f"Not for everything: the student is more than {points} below the teacher ({measured})."
    if found.needed_items is None:
        return (
            f"Probably not for everything: the student seems to be more than {points} below the teacher, but "
            f"{found.n} items cannot tell ({measured})."
        )
    return (
        f"Not shown yet: the student seems to be at most {points} below the teacher ({measured}), but {found.n} items "
        f"cannot tell. It takes about {round_up(found.needed_items)}."
    )


def _list_risks(metrics: Metrics, confidence: Reliability | None) -> Iterator[str]:
    """Errors that the teacher would not make, slices in which the student is behind, and confidence that misleads."""
    golden = metrics.golden
    own = golden.systems[DISTILLED]
    if own.errors is not None and own.errors.n:
        wrong = own.errors.inherited + own.errors.own
        yield f"{wrong} of {own.errors.n} answers are wrong, {own.errors.own} of them where the teacher is right."
    elif is_accuracy(metrics) and own.score.value is not None:
        wrong = round(own.n * (1 - own.score.value))
        yield f"{wrong} of {own.n} answers are wrong; there is no teacher to compare them with."
    compared = golden.slice_comparisons.get(TEACHER, ())
    behind = [c for c in compared if c.adjusted_p_value < 1 - metrics.confidence and (c.difference.value or 0) < 0]
    if behind:
        places = ", ".join(f"{c.slice} ({format_points(c.difference)} points)" for c in behind)
        yield f"Clearly behind the teacher in {count_noun(len(behind), 'slice')}: {places}."
    elif len(compared) > 1:
        slices = count_noun(len(compared), "slice")
        yield f"In none of {slices} is it clearly behind the teacher, but slices have few items."
    known = [s for s in own.slices if s.score.value is not None]
    if len(known) > 1:
        worst = min(known, key=lambda s: (s.score.value, -s.n))
        yield f"The weakest slice is {worst.slice}: {format_interval(worst.score)} on {count_noun(worst.n, 'item')}."
    if confidence is not None and confidence.is_beyond_chance:
        side = "too sure" if confidence.stated > confidence.right else "less sure than it could be"
        yield (
            f"The student is {side}: it states {100 * confidence.stated:.0f} % on average, and "
            f"{100 * confidence.right:.0f} % of its answers are right."
        )


def _describe_quality(metrics: Metrics, names: list[str]) -> str:
    systems = metrics.golden.systems
    values = {name: systems[name].score.value for name in dict.fromkeys(names) if name in systems}
    known = {SYSTEM_TITLES.get(name, name): value for name, value in values.items() if value is not None}
    test = f"the golden set, {systems[DISTILLED].n} items that people labelled and no system was trained on"
    if not is_accuracy(metrics):
        scores = "; ".join(f"{name} {value:.2f}" for name, value in known.items())
        return (
            f"{format_metric_name(metrics.metric)}, where 0 is the worst and 1 the best: {scores}. The test is {test}."
        )
    right = {name: f"{100 * value:.0f}" for name, value in known.items()}
    own = right.pop(SYSTEM_TITLES[DISTILLED])
    rest = f" ({'; '.join(f'{name} {share}' for name, share in right.items())})" if right else ""
    return f"the distilled student answers {own} of 100 items right{rest}. The test is {test}."


def _describe_steps(metrics: Metrics) -> str:
    """What each step keeps of the score before it, if an assistant is between the teacher and the student."""
    kept = [step.ratio.value for step in metrics.golden.steps]
    if len(kept) != 2 or kept[0] is None or kept[1] is None:
        return ""
    return (
        f"the teacher taught an assistant ({metrics.facts[ASSISTANT].model}), which keeps {100 * kept[0]:.0f} % of the "
        f"teacher's score. The assistant taught the student, which keeps {100 * kept[1]:.0f} % of the assistant's."
    )


def _describe_speed(own: float, teacher: float | None) -> str:
    if not teacher:
        return f"one answer takes the student {format_milliseconds(own)}; the teacher was not timed."
    times = max(own, teacher) / min(own, teacher)
    factor = f"{times:.0f} times" if times >= 10 else f"{times:.1f} times"
    both = f"one answer takes the student {format_milliseconds(own)} and the teacher {format_milliseconds(teacher)}"
    if times < 1.05:
        return f"{both}: no difference."
    return f"{both}: the student is {factor} {'faster' if own < teacher else 'slower'}."


def _describe_cost(metrics: Metrics) -> str:
    """What answers cost, what the distillation took, and after how many requests that is saved."""
    own, teacher = metrics.facts[DISTILLED].cost_usd_per_1k, metrics.facts.get(TEACHER)
    billed = teacher.cost_usd_per_1k if teacher else None
    unset = "Set `evaluation.machine_usd_per_hour` in task.yaml to see what your machine costs."
    if billed is not None and own is not None:
        both = (
            f"1,000 answers cost {format_dollars(own)} with the student and {format_dollars(billed)} with the teacher."
        )
        return f"{both} {_describe_distillation(metrics.distillation)}".strip()
    if billed is not None:
        return (
            f"1,000 answers of the teacher cost {format_dollars(billed)}. The student runs on your own machine. {unset}"
        )
    student = f"1,000 answers of the student cost {format_dollars(own)}." if own is not None else unset
    if teacher is None or is_local(TEACHER, teacher):
        return f"everything here runs on your own machine, and no answer is billed. {student}"
    return f"the price of the teacher is not known. Set its `price` in task.yaml. {student}"


def _describe_distillation(cost: DistillationCost | None) -> str:
    if cost is None or cost.usd is None or cost.training_s is None:
        return ""
    took = (
        f"The distillation took {format_dollars(cost.usd)}: {count_noun(cost.answers, 'answer')} of the teacher, and "
        f"{format_seconds(cost.training_s)} of training."
    )
    if cost.break_even is None:
        return f"{took} The student costs no less, so it saves no money."
    return f"{took} It has paid for itself after about {round_up(cost.break_even)} requests{_describe_days(cost)}."


def _describe_days(cost: DistillationCost) -> str:
    """In how many days that is, at the traffic to expect."""
    day = cost.day
    if day is None or day.days is None:
        return ""
    if day.rented_days is None:
        rented = "; a machine rented for it around the clock would cost more than the teacher"
    else:
        rented = f", or {format_days(day.rented_days)} on a machine rented for it around the clock"
    return f", which is {format_days(day.days)} at {day.requests:,} a day{rented}"


def is_accuracy(metrics: Metrics) -> bool:
    return metrics.metric == "accuracy"


def round_up(number: int) -> str:
    """A number with two digits that count, never below it: 1,234 becomes 1,300."""
    scale = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil(number / scale) * scale:,}"
