"""Recommend which system to use, in words: was distilling worth it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from distill_dagster.evaluation.formatting import format_dollars, format_metric_name_in_sentence, format_points
from distill_dagster.evaluation.metrics import (
    ASSISTANT,
    BASE,
    CENTROID,
    DISTILLED,
    LINEAR_PROBE,
    SEED_ONLY,
    SLICE_LABEL,
    TEACHER,
    Metrics,
    SystemComparison,
)
from distill_dagster.evaluation.money_verdict import MoneyResult, describe_money, get_costs, judge_money
from distill_dagster.evaluation.system_names import SYSTEM_NAMES

HAD_TEACHER = (TEACHER, ASSISTANT, LINEAR_PROBE)
"""Systems that the teacher's answers went into. Whether distilling pays is decided against all others."""
NOTABLE_GAIN = 0.05
"""A gain in score. A system counts as equal to distilled only if a larger gain of distilled is ruled out."""


ProbeResult = Literal["better", "equal", "unclear", "worse"]
"""The linear probe compared with the student. `unclear`: no clear difference, and the student may be notably better."""


@dataclass(frozen=True)
class Recommendation:
    """Whether distilling pays, in words.

    Attributes:
        worth_it: None if the items cannot decide.
        best_other: the best system that had no teacher; "" if there is none. The teacher, if it is what to use.
        probe: how the linear probe does against the student; None if there is no probe.
        money: whether the student saves money against the teacher; None if a cost is unknown.
    """

    worth_it: bool | None
    text: str
    best_other: str
    probe: ProbeResult | None = None
    money: MoneyResult | None = None


def recommend(metrics: Metrics) -> Recommendation:
    """Compare the distilled student with the teacher and with the best system that had no teacher, on golden.

    A difference is clear if its paired interval excludes zero and the paired test agrees at the same level.

    - Worth it: the student is clearly better than every system that had no teacher, and has something over the
      teacher: it saves money, takes less time, or is clearly better. Costs and times that are unknown are no reason
      against it.
    - Not worth it: another system is clearly better. Or another system scores no lower, and either a gain of
      `NOTABLE_GAIN` is ruled out or the teacher is clearly below the untrained base. Or the student has nothing over
      the teacher.
    - Undecided: everything else.

    The linear probe learns from the same answers of the teacher, so it does not decide whether the teacher helps. The
    text says so if it is as good as the student. It also names a teacher that is no better than the base, and slice
    names that teach as much as the teacher.
    """
    golden = metrics.golden
    own = golden.systems[DISTILLED].score.value
    others = {
        second: c
        for (first, second), c in golden.comparisons.items()
        if first == DISTILLED and second not in HAD_TEACHER and c.difference.value is not None
    }
    probe, about_probe = compare_with_probe(metrics), _describe_probe(metrics)
    money, about_money = judge_money(metrics), describe_money(metrics)
    if not others or own is None:
        text = f"No verdict: {_format_scores(metrics, DISTILLED)}, and there is no other system to compare it with."
        return Recommendation(None, _join_sentences(text, about_probe, _describe_retention(metrics)), "", probe, money)

    # The smallest lead decides. Of systems with equal leads, the one with the least effort counts.
    level = 1 - metrics.confidence
    better = [name for name, c in others.items() if _is_clearly_worse(c, level)]
    best = min(better or others, key=lambda name: (others[name].difference.value or 0.0, _rank_effort(name)))
    closest = others[best]
    lead = closest.difference.value or 0.0
    unclear = [name for name, c in others.items() if not is_clearly_better(c, level)]
    figures = f"{_format_scores(metrics, DISTILLED, best)}; {_format_difference(closest, metrics.confidence)}"
    cause = _explain_result(metrics, others, level)

    if not unclear and money in ("late", "costs") and not _has_gain_over_teacher(metrics, level):
        text = f"No: keep the teacher. {about_money} It is neither clearly better nor faster ({figures})."
        text = _join_sentences(text, about_probe, _describe_retention(metrics), cause)
        return Recommendation(False, text, TEACHER, probe, money)
    if not unclear:
        text = f"Yes, distilling pays: {figures}."
        text = _join_sentences(text, about_probe, _describe_retention(metrics), about_money, cause)
        return Recommendation(True, text, best, probe, money)
    if better:
        text = f"No: {SYSTEM_NAMES.get(best, best)} is better than the distilled student; use it instead ({figures})."
        return Recommendation(False, _join_sentences(text, about_probe, cause), best, probe, money)
    if lead <= 0 and ((closest.difference.high or 0.0) <= NOTABLE_GAIN or is_teacher_weak(metrics)):
        text = (
            f"No: {SYSTEM_NAMES.get(best, best)} is at least as good as the distilled student and needs no distilling; use "  # noqa: E501
            f"it instead ({figures})."
        )
        return Recommendation(False, _join_sentences(text, about_probe, cause), best, probe, money)
    nearest = min(unclear, key=lambda name: others[name].difference.value or 0.0)
    which = f"to {nearest} " if len(unclear) > 1 else ""
    difference = _format_difference(others[nearest], metrics.confidence, which)
    figures = f"{_format_scores(metrics, DISTILLED, *unclear)}; {difference}"
    names = SYSTEM_NAMES.get(nearest, nearest) if len(unclear) == 1 else f"{', '.join(unclear[:-1])} and {unclear[-1]}"
    text = f"Too close to call at {closest.n} golden items between the distilled student and {names}: {figures}."
    advice = f"Add golden items. Until they decide, {_name_cheaper(metrics, nearest)} is the safer choice."
    text = _join_sentences(text, about_probe, _describe_retention(metrics), about_money, cause, advice)
    return Recommendation(None, text, best, probe, money)


def compare_with_probe(metrics: Metrics) -> ProbeResult | None:
    """How the linear probe does against the distilled student on golden; None without a probe.

    It is equal if no difference is clear, and it scores no lower or a gain of `NOTABLE_GAIN` is ruled out.
    """
    c = metrics.golden.comparisons.get((DISTILLED, LINEAR_PROBE))
    if c is None or c.difference.value is None:
        return None
    level = 1 - metrics.confidence
    if _is_clearly_worse(c, level):
        return "better"
    if is_clearly_better(c, level):
        return "worse"
    is_equal = c.difference.value <= 0 or (c.difference.high or 0.0) <= NOTABLE_GAIN
    return "equal" if is_equal else "unclear"


def _has_gain_over_teacher(metrics: Metrics, level: float) -> bool:
    """Whether the student is clearly better than the teacher or takes less time. An unknown time may be less."""
    c = metrics.golden.comparisons.get((DISTILLED, TEACHER))
    if c is not None and is_clearly_better(c, level):
        return True
    own, teacher = (metrics.golden.systems[name].latency.p50 for name in (DISTILLED, TEACHER))
    return own is None or teacher is None or own < 0.95 * teacher


def _name_cheaper(metrics: Metrics, other: str) -> str:
    """The cheaper one of the student and another system, with both costs if they are known."""
    own, theirs = get_costs(metrics, DISTILLED, other)
    if own is None or theirs is None or own == theirs:
        return "the cheaper system"
    name, low, high = (DISTILLED, own, theirs) if own < theirs else (other, theirs, own)
    return (
        f"the cheaper system, {SYSTEM_NAMES.get(name, name)}, at {format_dollars(low)} for 1,000 answers instead of "
        f"{format_dollars(high)},"
    )


def _describe_probe(metrics: Metrics) -> str:
    """A sentence about the linear probe, unless the student is clearly better."""
    result = compare_with_probe(metrics)
    if result is None or result == "worse":
        return ""
    c = metrics.golden.comparisons[DISTILLED, LINEAR_PROBE]
    words = {
        "better": "is better than the student; use it instead",
        "equal": "is as good as the student, without fine-tuning",
        "unclear": "is not clearly behind the student, without fine-tuning",
    }[result]
    return (
        f"{SYSTEM_NAMES[LINEAR_PROBE].capitalize()}, learned from the same answers of the teacher and {words} "
        f"({_format_scores(metrics, DISTILLED, LINEAR_PROBE)}; {_format_difference(c, metrics.confidence)})."
    )


def list_rivals(metrics: Metrics) -> list[str]:
    """The systems without a teacher that distilled is not clearly better than, the closest first."""
    found = {
        second: c
        for (first, second), c in metrics.golden.comparisons.items()
        if first == DISTILLED and second not in HAD_TEACHER and not is_clearly_better(c, 1 - metrics.confidence)
    }
    return sorted(found, key=lambda name: (found[name].difference.value or 0.0, _rank_effort(name)))


def is_clearly_better(c: SystemComparison, level: float) -> bool:
    """Whether the first of two systems is better: the interval is above zero, and the paired test agrees at `level`."""
    return (c.difference.low or 0.0) > 0 and c.p_value <= level


def _is_clearly_worse(c: SystemComparison, level: float) -> bool:
    return c.difference.high is not None and c.difference.high < 0 and c.p_value <= level


def is_teacher_weak(metrics: Metrics) -> bool:
    """Whether the teacher is clearly below the untrained base on golden."""
    level = 1 - metrics.confidence
    c = metrics.golden.comparisons.get((BASE, TEACHER))
    return c is not None and is_clearly_better(c, level)


def _explain_result(metrics: Metrics, others: dict[str, SystemComparison], level: float) -> str:
    """Name the cause: a teacher no better than the base, or slice names that teach as much as the teacher."""
    parts = []
    base = metrics.golden.comparisons.get((BASE, TEACHER))
    if base is not None and base.difference.value is not None and base.difference.value >= 0:
        figures = (
            f"({_format_scores(metrics, TEACHER, BASE)}; base minus teacher {format_points(base.difference)} points)"
        )
        if is_teacher_weak(metrics):
            parts.append(f"This teacher is weaker than the untrained base {figures}; choose a stronger teacher.")
        else:
            parts.append(f"On these items this teacher scores no higher than the untrained base {figures}.")
    slices = others.get(SLICE_LABEL)
    if slices is not None and (slices.difference.value or 0.0) <= 0:
        is_clear = _is_clearly_worse(slices, level)
        subject, result = ("The", "is better") if is_clear else ("On these items the", "scores no lower")
        parts.append(
            f"{subject} teacher added nothing: {SYSTEM_NAMES[SLICE_LABEL]}, without a teacher, {result} "
            f"({_format_scores(metrics, SLICE_LABEL, DISTILLED)})."
        )
    return " ".join(parts)


def _describe_retention(metrics: Metrics) -> str:
    """How much of the teacher's score the student keeps, and at what speed."""
    golden = metrics.golden
    kept = golden.retention
    if kept.value is None:
        return ""
    low, high = kept.low, kept.high
    interval = "" if low is None or high is None else f" [{100 * low:.0f}, {100 * high:.0f}]"
    share = f"{100 * kept.value:.0f} %{interval}"
    words = f"The distilled student keeps {share} of the teacher's {format_metric_name_in_sentence(metrics.metric)}"
    words += describe_steps(metrics)
    own, teacher = golden.systems[DISTILLED].latency.p50, golden.systems[TEACHER].latency.p50
    if not own or not teacher:
        return f"{words}. Their speed is not compared, since the latency of at least one was not measured."
    if abs(teacher - own) < 0.05 * own:
        return f"{words} at the same median latency ({_format_seconds(own)} against {_format_seconds(teacher)})."
    if teacher >= own:
        return f"{words} at {_format_factor(teacher / own)} lower median latency ({_format_seconds(own)} against {_format_seconds(teacher)})."  # noqa: E501
    slower = f"{_format_factor(own / teacher)} higher ({_format_seconds(own)} against {_format_seconds(teacher)})"
    return f"{words}, but its median latency is {slower}."


def describe_steps(metrics: Metrics) -> str:
    """A clause about the share of the score that each step keeps, if an assistant is between; else nothing."""
    kept = [step.ratio.value for step in metrics.golden.steps]
    if len(kept) != 2 or kept[0] is None or kept[1] is None:
        return ""
    return (
        f" (the assistant {100 * kept[0]:.0f} % of the teacher's, the student {100 * kept[1]:.0f} % of the assistant's)"
    )


def _format_scores(metrics: Metrics, *names: str) -> str:
    scores = metrics.golden.systems
    return ", ".join(f"{name} {scores[name].score.value:.3f}" for name in names)


def _rank_effort(system: str) -> int:
    order = (BASE, CENTROID, SEED_ONLY, SLICE_LABEL)
    return order.index(system) if system in order else len(order)


def _format_difference(c: SystemComparison, confidence: float, which: str = "") -> str:
    return (
        f"the difference {which}is {format_points(c.difference)} points ({100 * confidence:g} % interval over {c.n} golden items, "  # noqa: E501
        f"{c.test} p {_format_p_value(c.p_value)})"
    )


def _format_p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _format_factor(factor: float) -> str:
    return f"{factor:.0f} times" if factor >= 10 else f"{factor:.1f} times"


def _format_seconds(value: float) -> str:
    return f"{1000 * value:.0f} ms" if value < 10 else f"{value:.1f} s"


def _join_sentences(*parts: str) -> str:
    return " ".join(part for part in parts if part)
