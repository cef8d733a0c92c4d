"""Judge the figures of a comparison between an export and its adapter, and compare both on dev."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill_dagster.evaluation.statistics import compute_non_inferiority_p_value, compute_permutation_p_value
from distill_dagster.release.types import ExportSource, Parity, ParityStage

DEV_P_VALUE = "dev_p_value"
"""The figure that says whether a quantized export is as good on dev: see `compare_on_dev`."""


def find_largest(differences: Iterable[float]) -> float:
    """The largest of these, 0 if there are none. Infinite if one is not a number, which `max` would pass over."""
    return max((value if not math.isnan(value) else math.inf for value in differences), default=0.0)


def judge_parity(
    stage: ParityStage,
    what: str,
    figures: Mapping[str, float],
    at_most: Mapping[str, float],
    at_least: Mapping[str, float] | None = None,
) -> Parity:
    """Compare figures with their bounds. A figure that is not a number fails.

    Args:
        what: what was compared, as the subject of a sentence: "model_int8.onnx on 348 prompts".
        at_most: upper bounds by figure.
        at_least: lower bounds by figure.
    """
    at_least = at_least or {}
    failed = [
        f"{name.replace('_', ' ')} is {figures[name]:.4g}, {word} {bound:g}"
        for bounds, word, sign in ((at_most, "more than", 1), (at_least, "less than", -1))
        for name, bound in bounds.items()
        if not sign * figures[name] <= sign * bound
    ]
    text = f"{what}: {'; '.join(failed)}." if failed else f"{what}: every figure is within its bound."
    return Parity(stage, dict(figures), {**at_most, **at_least}, not failed, text)


def compare_on_dev(source: ExportSource, answers: Sequence[Any]) -> dict[str, float]:
    """Compare an export's answers to the dev rows with the adapter's.

    `dev_agreement` is the share of equal answers, `dev_score` and `dev_adapter_score` are mean scores. `dev_p_value` is
    one-sided, of the hypothesis that the export's mean score is lower by `source.margin` or more: by the score test for
    paired shares (Tango 1998), or by random signs for graded scores. It is 1 without dev rows.

    Args:
        answers: canonical answers in the order of `source.dev`. None is no answer.
    """
    items = source.dev
    if not items:
        return {"dev_items": 0.0, DEV_P_VALUE: 1.0}
    scores = [
        0.0 if answer is None else float(source.kind.score(answer, item.reference))
        for item, answer in zip(items, answers, strict=True)
    ]
    return {
        "dev_items": float(len(items)),
        "dev_agreement": sum(item.answer == answer for item, answer in zip(items, answers, strict=True)) / len(items),
        "dev_score": sum(scores) / len(items),
        "dev_adapter_score": sum(item.score for item in items) / len(items),
        DEV_P_VALUE: _compute_p_value(scores, [item.score for item in items], source),
    }


def _compute_p_value(scores: list[float], before: list[float], source: ExportSource) -> float:
    import numpy as np

    if set(scores) | set(before) <= {0.0, 1.0}:
        better = sum(now > then for now, then in zip(scores, before, strict=True))
        worse = sum(now < then for now, then in zip(scores, before, strict=True))
        return compute_non_inferiority_p_value(better, worse, len(scores), source.margin)
    # Above the margin: half of the two-sided test, on the side where the export is not inferior.
    shifted = np.array(scores, dtype=np.float32) - np.array(before, dtype=np.float32) + np.float32(source.margin)
    p_value = compute_permutation_p_value(shifted, source.seed)
    return p_value / 2 if shifted.mean() > 0 else 1 - p_value / 2


def count_rows_for_margin(margin: float, confidence: float) -> int:
    """How many dev rows show that an export is not worse by `margin`, if it answers each as the adapter does."""
    from scipy.stats import norm

    # Tango's statistic without any difference is sqrt(rows * margin / (1 - margin)).
    return math.ceil(float(norm.ppf(confidence)) ** 2 * (1 - margin) / margin)
