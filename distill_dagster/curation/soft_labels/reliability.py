"""Expected calibration error and reliability table: how often answers are right, next to how sure they say they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BINS = 10
"""As in Naeini, Cooper and Hauskrecht 2015. Dev sets are small, so there are not more."""
CHANCE_LEVEL = 0.95
CHANCE_SAMPLES = 1000
CHANCE_SEED = 0


@dataclass(frozen=True)
class ReliabilityBin:
    """The rows with a confidence from `low` to `high`.

    Attributes:
        stated: the mean confidence.
        right: the share of right answers, with its exact 95% interval (Clopper and Pearson 1934).
    """

    low: float
    high: float
    rows: int
    stated: float
    right: float
    right_low: float
    right_high: float


@dataclass(frozen=True)
class Reliability:
    """How well confidences match the share of right answers. All figures but `rows` are shares of 1.

    Attributes:
        stated: the mean confidence.
        right: the share of right answers. A mean confidence above it is overconfidence.
        ece: the expected calibration error.
        chance_ece: an expected calibration error up to this one may be chance (`estimate_chance_ece`).
        bins: the bins with rows, in ascending order.
        brier: the mean squared distance of a confidence from 1 if its answer is right, else from 0 (Brier 1950); None
            in records of earlier versions.
    """

    rows: int
    stated: float
    right: float
    ece: float
    chance_ece: float
    bins: tuple[ReliabilityBin, ...]
    brier: float | None = None

    @property
    def is_beyond_chance(self) -> bool:
        """Whether perfectly calibrated confidences would rarely show such an error."""
        return self.ece > self.chance_ece

    def list_points(self) -> list[tuple[float, float, float, float]]:
        """For each bin the mean confidence and the share of right answers with its interval, for a plot."""
        return [(one.stated, one.right, one.right_low, one.right_high) for one in self.bins]

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON; `from_dict` reads them."""
        return asdict(self) | {"bins": [asdict(one) for one in self.bins]}

    @classmethod
    def from_dict(cls, figures: Mapping[str, Any]) -> Reliability:
        """Read what `to_dict` returned."""
        return cls(**dict(figures) | {"bins": tuple(ReliabilityBin(**one) for one in figures["bins"])})


def measure_reliability(
    confidences: Sequence[float], correct: Sequence[bool], *, equal_mass: bool = False
) -> Reliability | None:
    """Measure how well the confidences of answers are calibrated.

    The expected calibration error is the mean over rows of |share right - mean confidence| of the row's bin (Naeini,
    Cooper and Hauskrecht 2015; Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Args:
        confidences: the probability of each answer, from 0 to 1.
        correct: whether it is right.
        equal_mass: whether bins have about as many rows each (Nguyen and O'Connor 2015), with equal confidences in one
            bin. Otherwise they have equal width. Equal mass suits students, whose confidences are mostly near 1.

    Returns:
        None if there is no row.
    """
    import numpy as np

    stated, right = np.asarray(confidences, dtype=float), np.asarray(correct, dtype=float)
    if not len(stated):
        return None
    if equal_mass:
        edges = np.quantile(stated, np.linspace(0, 1, BINS + 1)[1:-1])
        places = np.searchsorted(edges, stated)
    else:
        # A stored probability has six digits: a mean that rounding puts just below an edge belongs above it.
        places = np.clip((stated * BINS + 1e-9).astype(int), 0, BINS - 1)
    return Reliability(
        rows=len(stated),
        stated=float(stated.mean()),
        right=float(right.mean()),
        ece=_compute_ece(places, stated - right),
        chance_ece=estimate_chance_ece(stated, places),
        bins=tuple(
            _build_bin(int(place), stated[places == place], right[places == place], equal_mass)
            for place in np.unique(places)
        ),
        brier=float(((stated - right) ** 2).mean()),
    )


def estimate_chance_ece(stated: NDArray[np.float64], places: NDArray[np.int64]) -> float:
    """The 95% quantile of the expected calibration error that perfectly calibrated confidences show by chance.

    Few rows show an error even if every confidence is exact. Consistency resampling (Bröcker and Smith 2007) draws each
    answer as right with the probability that its confidence states.
    """
    import numpy as np

    rng = np.random.default_rng(CHANCE_SEED)
    drawn = [_compute_ece(places, stated - (rng.random(len(stated)) < stated)) for _ in range(CHANCE_SAMPLES)]
    return float(np.quantile(drawn, CHANCE_LEVEL))


def _compute_ece(places: NDArray[np.int64], gaps: NDArray[np.float64]) -> float:
    """The expected calibration error of rows in the bins `places`; `gaps` is confidence minus rightness of each."""
    import numpy as np

    return float(np.abs(np.bincount(places, weights=gaps)).sum() / len(gaps))


def _build_bin(place: int, stated: NDArray[np.float64], right: NDArray[np.float64], equal_mass: bool) -> ReliabilityBin:
    from scipy.stats import binomtest

    hits, rows = int(right.sum()), len(right)
    bounds = binomtest(hits, rows).proportion_ci(0.95, method="exact")
    share = hits / rows
    low, high = min(float(bounds.low), share), max(float(bounds.high), share)
    edges = (float(stated.min()), float(stated.max())) if equal_mass else (place / BINS, (place + 1) / BINS)
    return ReliabilityBin(*edges, rows, float(stated.mean()), share, low, high)
