"""What the report says about routing: the threshold that dev would give, and golden at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_dagster.config import RoutingSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.evaluation.risk_coverage import (
    RoutingPoint,
    RoutingRows,
    RoutingSummary,
    compute_curve,
    measure_router,
)
from distill_dagster.release.routing.calibration import calibrate_router

if TYPE_CHECKING:
    import polars as pl

SHOWN_SPLITS = ("dev", "golden")
CURVE_POINTS = 41


def summarize_routing(spec: RoutingSpec, predictions: pl.DataFrame) -> RoutingSummary | None:
    """Calibrate the student's adapter on dev and measure it on golden. A release calibrates each of its files anew.

    Returns None if the student states no confidence, or the teacher has no answers.

    Args:
        predictions: schema PREDICTIONS.
    """
    rows = {split: RoutingRows.from_predictions(predictions, split) for split in SHOWN_SPLITS}
    rows = {split: one for split, one in rows.items() if len(one) and (one.confidence > 0).any()}
    if not rows:
        return None
    threshold, sentence = _choose_threshold(spec, rows.get("dev"))
    chosen = {} if threshold is None else {split: measure_router(one, threshold) for split, one in rows.items()}
    if "golden" in chosen and spec.threshold is None and _exceeds_margin(spec, chosen["golden"], len(rows["golden"])):
        sentence += (
            f" Golden contradicts: there the student harms {chosen['golden'].harm:.1%} of the requests. A dev set that "
            "also chose settings is optimistic; `routing.calibrate_on: traffic` is not."
        )
    return RoutingSummary(
        sentence=sentence,
        threshold=threshold,
        margin=spec.margin,
        curves={split: compute_curve(one, CURVE_POINTS) for split, one in rows.items()},
        chosen=chosen,
    )


def _exceeds_margin(spec: RoutingSpec, golden: RoutingPoint, rows: int) -> bool:
    """Whether the harm on golden is larger than the margin beyond chance: an exact binomial test."""
    from scipy.stats import binomtest

    test = binomtest(round(golden.harm * rows), rows, spec.margin, alternative="greater")
    return float(test.pvalue) < 1 - spec.confidence


def _choose_threshold(spec: RoutingSpec, dev: RoutingRows | None) -> tuple[float | None, str]:
    if spec.threshold is not None:
        fixed = f"routing.threshold of task.yaml is {spec.threshold:g}; nothing is promised about accuracy."
        return spec.threshold, f"The student answers everything: {fixed}" if spec.threshold == 0 else fixed
    if dev is None:
        return None, "The teacher answers everything: dev has no rows to choose a threshold on."
    try:
        calibration = calibrate_router(dev, spec.margin, spec.confidence)
    except DistillError as error:  # the report is worth making without the extra `release`
        return None, f"No threshold was chosen. {error}"
    return calibration.threshold, calibration.describe()
