"""Temperature scaling of soft labels: one number per teacher, fitted on dev, makes them as sure as they are right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from distill_dagster.curation.candidates.priors import MIN_LABEL_PROB
from distill_dagster.curation.soft_labels.reliability import measure_reliability

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_DEV_ROWS = 20
"""The fewest dev rows from which a temperature is fitted. The soft labels of other teachers stay as they are."""
TEMPERATURE_BOUNDS = (0.1, 10.0)


@dataclass(frozen=True)
class SoftAnswer:
    """A teacher's answer to a dev row, and the human's label.

    `probs` has a probability for some or all labels. One of at most `MIN_LABEL_PROB` counts as none: candidates have it
    for labels that the teacher does not name, and a temperature would make it large.
    """

    probs: Mapping[str, float]
    answer: str
    reference: str

    @property
    def named(self) -> dict[str, float]:
        """The labels that the teacher names."""
        return {label: prob for label, prob in self.probs.items() if prob > MIN_LABEL_PROB}


@dataclass(frozen=True)
class TemperatureFit:
    """The temperature of one teacher, and what it does on the dev rows that it is fitted on.

    Attributes:
        rows: the dev rows.
        temperature: above 1 the soft labels were too sure; below 1 not sure enough; 1 if there were too few rows.
        nll_before, nll_after: mean negative log-likelihood that the answer is right, in nats.
        ece_before, ece_after: expected calibration error.
    """

    rows: int
    temperature: float
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float

    @property
    def is_fitted(self) -> bool:
        """Whether there were enough dev rows."""
        return self.rows >= MIN_DEV_ROWS

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain JSON, rounded to six digits."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def fit_temperature(answers: Sequence[SoftAnswer]) -> TemperatureFit:
    """Fit the temperature T at which p^(1/T), normalized, is as sure of the answers as they are right.

    Guo et al. 2017 choose T by the likelihood of the true labels. A teacher may give the true label no probability,
    since it names only plausible ones. So this maximizes the likelihood of being right (top-label calibration, Gupta
    and Ramdas 2022). Instead of 0 and 1, the targets are those of Platt 1999: (right + 1) / (right + 2) and
    1 / (wrong + 2). Otherwise a teacher without a mistake on dev would become certain of everything.

    Raises:
        ValueError: there is no answer, or an answer has no probability.
    """
    from scipy.optimize import minimize_scalar

    if not answers:
        raise ValueError("a temperature cannot be fitted without answers")
    logs, places = _build_logarithms(answers)
    correct = [one.answer == one.reference for one in answers]
    before = [one.probs[one.answer] for one in answers]
    right = sum(correct)
    wrong = len(correct) - right
    targets = [(right + 1) / (right + 2) if hit else 1 / (wrong + 2) for hit in correct]

    def compute_loss(log_temperature: float) -> float:
        return _compute_nll(_scale_confidences(logs, places, math.exp(log_temperature)), targets)

    temperature = 1.0
    if len(answers) >= MIN_DEV_ROWS:
        low, high = (math.log(bound) for bound in TEMPERATURE_BOUNDS)
        temperature = math.exp(minimize_scalar(compute_loss, bounds=(low, high), method="bounded").x)
    after = _scale_confidences(logs, places, temperature)
    stated_before, stated_after = measure_reliability(before, correct), measure_reliability(after.tolist(), correct)
    assert stated_before is not None
    assert stated_after is not None
    hits = [float(hit) for hit in correct]
    return TemperatureFit(
        rows=len(answers),
        temperature=round(temperature, 4),
        nll_before=_compute_nll(before, hits),
        nll_after=_compute_nll(after, hits),
        ece_before=stated_before.ece,
        ece_after=stated_after.ece,
    )


def _build_logarithms(answers: Sequence[SoftAnswer]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The logarithms of named labels, padded to shape (answers, labels), and the column of each answer."""
    import numpy as np

    named = [one.named for one in answers]
    logs = np.full((len(answers), max(map(len, named))), -np.inf)
    for row, probs in enumerate(named):
        logs[row, : len(probs)] = np.log(list(probs.values()))
        if answers[row].answer not in probs:
            raise ValueError(f"the answer {answers[row].answer!r} has no probability")
    return logs, np.array([list(probs).index(one.answer) for probs, one in zip(named, answers, strict=True)])


def _scale_confidences(logs: NDArray[np.float64], places: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """The probability of each answer at a temperature."""
    import numpy as np
    from scipy.special import softmax

    return np.asarray(softmax(logs / temperature, axis=1))[np.arange(len(places)), places]


def _compute_nll(confidences: Sequence[float] | NDArray[np.float64], targets: Sequence[float]) -> float:
    """The mean negative log-likelihood of the targets, which are probabilities of being right."""
    import numpy as np

    stated = np.clip(np.asarray(confidences), MIN_LABEL_PROB, 1 - MIN_LABEL_PROB)
    expected = np.asarray(targets)
    return float(-(expected * np.log(stated) + (1 - expected) * np.log1p(-stated)).mean())


def rescale_soft_labels_expr(temperatures: Mapping[str, float]) -> pl.Expr:
    """The column `soft_labels` of rows at the temperature of their `teacher`; rows of other teachers are unchanged.

    The order of the labels does not change. A label that the teacher does not name (`SoftAnswer`) has no probability.
    """
    scaled = pl.col("soft_labels")
    for teacher, temperature in temperatures.items():
        if temperature != 1.0:
            is_own = pl.col("teacher") == teacher
            scaled = pl.when(is_own).then(_scale_expr(temperature)).otherwise(scaled)
    return scaled.alias("soft_labels")


def _scale_expr(temperature: float) -> pl.Expr:
    label, prob = pl.element().struct.field("label"), pl.element().struct.field("prob")
    # Divide by the largest first: a high power of small probabilities would be 0.
    power = pl.when(prob > MIN_LABEL_PROB).then((prob / prob.max()) ** (1 / temperature)).otherwise(0.0)
    entry = pl.struct(label, (power / power.sum()).round(6).alias("prob"))
    named = pl.col("soft_labels").list.eval(entry)
    return named.list.eval(pl.element().filter(pl.element().struct.field("prob") > 0))
