"""Say from the log of served requests whether traffic still is what a release was calibrated for.

Three questions, each with its own test and its own remedy: does the student keep the share that it kept before, does it
still agree with the teacher where both answered, and are the requests like what it was trained on. A difference counts
if it is both beyond chance and large enough to matter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from distill_dagster.core.formatting import count_noun
from distill_dagster.intake.request_log import LoggedRequest
from distill_dagster.release.routing.table import ExportRouting

if TYPE_CHECKING:
    from distill_dagster.core.embedding import EmbedFunction

WINDOW = 2000
"""The newest requests that are looked at."""
MIN_REQUESTS = 50
"""Fewer requests say nothing."""
ERROR_RATE = 0.01
"""How often each test may raise a false alarm. It is repeated every hour or so, hence not 0.05."""
LARGE_CHANGE = 0.05
"""The smallest change of the kept share that matters."""
FAMILIAR_QUANTILE = 0.05
"""A request is unfamiliar if this share of dev and golden is further away from the training rows."""
LARGE_UNFAMILIAR = 0.10
"""The smallest share of unfamiliar requests that matters: twice what dev and golden have."""
MOST_EMBEDDED = 2000
"""The most training rows, and the most requests, that are embedded."""


@dataclass(frozen=True)
class Familiarity:
    """How many of the requests have no near training row, and on how many rows of dev and golden near was measured."""

    requests: int
    unfamiliar: int
    held_out: int


@dataclass(frozen=True)
class TrafficDrift:
    """What the log says. Shares are None where nothing can be compared.

    Attributes:
        requests: how many of the current release were looked at, of which `since` is the oldest.
        kept: the share that the student is sure enough of.
        kept_before: the same share of the rows that the threshold was chosen on.
        shadowed: how many accepted requests the teacher answered too, and `disagreed` how many it answered otherwise.
        disagreement_low: lower bound on the share of all requests that the student keeps and answers otherwise.
        unfamiliar: the share of requests without a near training row; about 0.05 without drift.
        reasons: one sentence for each drift; empty if there is none.
    """

    requests: int
    since: str | None
    kept: float | None
    kept_before: float | None
    shadowed: int
    disagreed: int
    disagreement_low: float | None
    unfamiliar: float | None
    reasons: tuple[str, ...]

    @property
    def has_drifted(self) -> bool:
        return bool(self.reasons)

    def describe(self, task: str) -> str:
        """One or more sentences: what drifted and what to do, or that nothing did."""
        if self.reasons:
            return " ".join(self.reasons) + (
                f" Refresh the task: `distill inbox {task}`, `distill refresh {task}`, then release again."
            )
        if self.requests < MIN_REQUESTS:
            return f"{self.requests} requests of the current release are logged; it takes {MIN_REQUESTS} to say more."
        return f"No drift in {self.requests} requests."

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"has_drifted": self.has_drifted}


def measure_drift(
    requests: Sequence[LoggedRequest],
    routing: ExportRouting,
    margin: float,
    are_equal: Callable[[Any, Any], bool],
    familiarity: Familiarity | None = None,
) -> TrafficDrift:
    """Compare the newest requests of a release with what its threshold was chosen on.

    Args:
        requests: those of the release and of the export that is served, the oldest first.
        margin: the accuracy that may be lost: `routing.margin`.
        are_equal: whether two answers are the same, by the kind.
    """
    newest = [one for one in requests if one.sampled][-WINDOW:]
    kept = [one for one in newest if routing.choose_route(one.confidence) == "student"]
    share = len(kept) / len(newest) if newest else None
    calibration = routing.calibration if routing.threshold is not None else None
    shadows = [one for one in kept if one.shadowed and one.teacher_answer is not None]
    disagreed = sum(
        one.student_answer is None or not are_equal(one.student_answer, one.teacher_answer) for one in shadows
    )
    low = None
    if share is not None and shadows:
        low = share * _compute_lower_bound(disagreed, len(shadows))
    reasons: list[str] = []
    if len(newest) >= MIN_REQUESTS:
        assert share is not None
        if calibration is not None and _has_changed(len(kept), len(newest), calibration.coverage, calibration.rows):
            reasons.append(
                f"The student is sure enough of {share:.0%} of {count_noun(len(newest), 'request')}; it was of "
                f"{calibration.coverage:.0%} of the rows that its threshold was chosen on."
            )
        if low is not None and calibration is not None and low > margin:
            reasons.append(
                f"The teacher answers {disagreed} of {len(shadows)} shadowed requests otherwise than the student: at "
                f"least {low:.1%} of all requests, more than routing.margin ({margin:.1%})."
            )
    if familiarity is not None and familiarity.requests >= MIN_REQUESTS:
        least = _compute_lower_bound(familiarity.unfamiliar, familiarity.requests)
        counts = familiarity.unfamiliar, familiarity.requests, FAMILIAR_QUANTILE, familiarity.held_out
        if least > LARGE_UNFAMILIAR and _has_changed(*counts):
            reasons.append(
                f"{familiarity.unfamiliar} of {familiarity.requests} requests are unlike the training rows; of dev and "
                f"golden, {FAMILIAR_QUANTILE:.0%} are."
            )
    return TrafficDrift(
        requests=len(newest),
        since=newest[0].at if newest else None,
        kept=share,
        kept_before=calibration.coverage if calibration else None,
        shadowed=len(shadows),
        disagreed=disagreed,
        disagreement_low=low,
        unfamiliar=familiarity.unfamiliar / familiarity.requests if familiarity and familiarity.requests else None,
        reasons=tuple(reasons),
    )


def measure_familiarity(
    training: Sequence[str], held_out: Sequence[str], requests: Sequence[str], embed: EmbedFunction
) -> Familiarity | None:
    """Count the requests that are further from their nearest training row than nearly all held-out texts are.

    Distances are cosines of sentence embeddings. Only the first rows and the newest requests are embedded, so pass them
    in an order that means nothing. Returns None if one of the three is empty.
    """
    import numpy as np

    if not training or not held_out or not requests:
        return None
    newest = list(requests[-MOST_EMBEDDED:])
    known = embed(list(training[:MOST_EMBEDDED]))
    usual = (embed(list(held_out[:MOST_EMBEDDED])) @ known.T).max(axis=1)
    nearest = (embed(newest) @ known.T).max(axis=1)
    return Familiarity(len(newest), int((nearest < np.quantile(usual, FAMILIAR_QUANTILE)).sum()), len(usual))


def _has_changed(count: int, requests: int, before: float, rows: int) -> bool:
    """Fisher's exact test against a share of other rows, and a change that is large enough to matter."""
    from scipy.stats import fisher_exact

    if abs(count / requests - before) < LARGE_CHANGE:
        return False
    count_before = round(before * rows)
    p = fisher_exact([[count, requests - count], [count_before, rows - count_before]]).pvalue
    return bool(p < ERROR_RATE)


def _compute_lower_bound(events: int, rows: int) -> float:
    """One-sided exact lower bound on a share (Clopper and Pearson 1934)."""
    from scipy.stats import binomtest

    exact = binomtest(events, rows, alternative="greater").proportion_ci(1 - ERROR_RATE, "exact")
    return float(exact.low)
