"""Choose the confidence threshold of a router with a bound on the accuracy lost against the teacher alone.

Learn Then Test (Angelopoulos et al. 2021, arXiv 2110.01052) with fixed-sequence testing, by MAPIE: thresholds are
tested from strict to lax, each by an exact binomial test of "harm over all requests exceeds the margin", up to the
first that is not rejected. All certified thresholds hold at once with probability `confidence`, for traffic like the
rows. The thresholds do not depend on the rows, else the test would not hold.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_dagster.evaluation.risk_coverage import RoutingRows
from distill_dagster.release.packages import require_packages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_ROWS = 30
"""Fewer rows are not calibrated on, whatever the margin."""
LARGEST_LOGIT, SMALLEST_LOGIT, LOGIT_STEP = 12.0, -6.0, 0.1


@dataclass(frozen=True)
class RouterCalibration:
    """A threshold and what is known of it. Shares are of all requests.

    Attributes:
        threshold: the lowest certified one; None if none is, so the teacher answers everything.
        rows: how many rows it was chosen on.
        has_labels: whether harm is against human labels; else disagreement with the teacher, which bounds it.
        margin: the accuracy that may be lost.
        confidence: with which probability the bound holds.
        coverage: the student's share at the threshold, on the rows.
        harm: the observed harm at the threshold.
        harm_bound: an upper bound on harm at the threshold with this confidence (Clopper and Pearson 1934).
        rows_needed: how many rows certify a threshold at which no harm is observed, at least 30. No fewer certify one.
    """

    threshold: float | None
    rows: int
    has_labels: bool
    margin: float
    confidence: float
    coverage: float
    harm: float
    harm_bound: float | None
    rows_needed: int

    def describe(self) -> str:
        """What a person needs to know, in one or two sentences."""
        source = "rows with human labels" if self.has_labels else "shadowed requests"
        points = "1 point of accuracy is" if self.margin == 0.01 else f"{100 * self.margin:g} points of accuracy are"
        promise = f"at most {points} lost ({100 * self.confidence:g}% confidence)"
        if self.threshold is not None:
            return (
                f"The student answers from confidence {self.threshold:.3f}: {100 * self.coverage:.0f}% of {self.rows} "
                f"{source}, and {promise}."
            )
        if self.rows < self.rows_needed:
            return (
                f"The teacher answers everything: {self.rows} {source} cannot show that {promise}. "
                f"It takes at least {self.rows_needed}."
            )
        return f"The teacher answers everything: on {self.rows} {source} no threshold shows that {promise}."


def calibrate_router(rows: RoutingRows, margin: float, confidence: float = 0.95) -> RouterCalibration:
    """Choose the lowest threshold whose harm over all requests is at most `margin` with probability `confidence`.

    The rows must be traffic as it comes, not filtered, and must not be what the student learned from or is scored on.

    Raises:
        DistillError: the extra `release` is not installed.
        ValueError: margin or confidence is not between 0 and 1.
    """
    if not 0 < margin < 1 or not 0 < confidence < 1:
        raise ValueError(f"margin {margin} and confidence {confidence} must be between 0 and 1")
    needed = max(count_rows_needed(margin, confidence), MIN_ROWS)
    threshold = _find_lowest_certified(rows, margin, confidence) if len(rows) >= needed else None
    kept = rows.confidence >= (math.inf if threshold is None else threshold)
    harmed = int((kept & rows.harmful).sum())
    return RouterCalibration(
        threshold=threshold,
        rows=len(rows),
        has_labels=rows.has_labels,
        margin=margin,
        confidence=confidence,
        coverage=float(kept.mean()) if len(rows) else 0.0,
        harm=harmed / len(rows) if len(rows) else 0.0,
        harm_bound=None if threshold is None else compute_upper_bound(harmed, len(rows), confidence),
        rows_needed=needed,
    )


def count_rows_needed(margin: float, confidence: float = 0.95) -> int:
    """How many rows without a single harm certify a margin: the smallest n with (1 - margin)^n <= 1 - confidence."""
    return math.ceil(math.log(1 - confidence) / math.log(1 - margin))


def compute_upper_bound(events: int, rows: int, confidence: float = 0.95) -> float:
    """One-sided exact upper bound on a share (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    exact = binomtest(events, rows, alternative="less").proportion_ci(confidence, "exact")
    return float(exact.high)


def list_thresholds() -> NDArray[np.float64]:
    """The thresholds that are tested, from strict to lax: even steps in log odds, dense near 0 and 1, and 0 itself."""
    import numpy as np

    steps = round((LARGEST_LOGIT - SMALLEST_LOGIT) / LOGIT_STEP)
    logits = np.linspace(LARGEST_LOGIT, SMALLEST_LOGIT, steps + 1)
    return np.append(1 / (1 + np.exp(-logits)), 0.0)


def _find_lowest_certified(rows: RoutingRows, margin: float, confidence: float) -> float | None:
    import numpy as np

    require_packages("Routing", "mapie")
    from mapie.risk_control import BinaryClassificationController, BinaryRisk

    harm = BinaryRisk(
        risk_occurrence=lambda harmful, kept: (harmful == 1) & (kept == 1),
        risk_condition=lambda harmful, kept: np.ones(len(kept), dtype=bool),  # over all requests
        higher_is_better=False,
    )
    controller = BinaryClassificationController(
        predict_function=lambda kept: np.column_stack([1 - kept, kept]),
        risk=harm,
        target_level=margin,
        confidence_level=confidence,
        best_predict_param_choice="predicted_positive_fraction",
        list_predict_params=list_thresholds(),
        fwer_method="fixed_sequence",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that no threshold is certified is a result like any other
        controller.calibrate(rows.confidence, rows.harmful.astype(int))
    certified = controller.valid_predict_params
    return float(certified.min()) if len(certified) else None
