"""What a router loses and keeps at each confidence threshold: the risk-coverage curve.

A router lets the student answer where its confidence reaches a threshold, and else asks the teacher. Coverage is the
share of all requests that the student answers. Harm is the share of all requests that the student answers wrongly
though the teacher is right: at most so much accuracy can be lost against the teacher alone. Gain is the opposite.
Risk-coverage curves: El-Yaniv and Wiener 2010; here the risk is relative to the teacher and over all requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

NEVER = float("inf")
"""A threshold that no confidence reaches: the teacher answers everything."""


@dataclass(frozen=True)
class RoutingRows:
    """The same requests, answered by student and teacher. All arrays have one element per request.

    Attributes:
        confidence: of the student's answer, from 0 to 1.
        student_right: whether it is right. Without human labels: whether it equals the teacher's.
        teacher_right: likewise. Without human labels: true for every request, so that harm is disagreement.
        has_labels: whether humans say what is right.
    """

    confidence: NDArray[np.float64]
    student_right: NDArray[np.bool_]
    teacher_right: NDArray[np.bool_]
    has_labels: bool = True

    def __post_init__(self) -> None:
        import numpy as np

        sizes = {len(self.confidence), len(self.student_right), len(self.teacher_right)}
        if len(sizes) > 1:
            raise ValueError(f"the arrays have different lengths: {sorted(sizes)}")
        if len(self) and not bool(np.all((self.confidence >= 0) & (self.confidence <= 1))):
            raise ValueError("a confidence is not a number from 0 to 1")

    def __len__(self) -> int:
        return len(self.confidence)

    @property
    def harmful(self) -> NDArray[np.bool_]:
        """Where the teacher is right and the student is not."""
        return self.teacher_right & ~self.student_right

    def take(self, index: NDArray[Any]) -> RoutingRows:
        """The rows at an index, for resamples."""
        right = self.student_right[index], self.teacher_right[index]
        return RoutingRows(self.confidence[index], *right, has_labels=self.has_labels)

    @classmethod
    def from_answers(
        cls, confidence: Sequence[float], student_right: Sequence[bool], teacher_right: Sequence[bool]
    ) -> RoutingRows:
        """Rows with human labels."""
        import numpy as np

        rights = np.array(student_right, dtype=bool), np.array(teacher_right, dtype=bool)
        return cls(np.array(confidence, dtype=np.float64), *rights)

    @classmethod
    def from_disagreement(cls, confidence: Sequence[float], agrees: Sequence[bool]) -> RoutingRows:
        """Rows without human labels, where only the teacher's answer is known. Disagreement is at least the harm."""
        import numpy as np

        rights = np.array(agrees, dtype=bool), np.ones(len(agrees), dtype=bool)
        return cls(np.array(confidence, dtype=np.float64), *rights, has_labels=False)

    @classmethod
    def from_predictions(cls, predictions: pl.DataFrame, split: str, system: str = "distilled") -> RoutingRows:
        """The rows of a split in a predictions table. An item without confidence has confidence 0."""
        import polars as pl

        rows = predictions.filter(pl.col("split") == split)
        student = rows.filter(pl.col("system") == system).select("item_id", "confidence", "correct")
        teacher = rows.filter(pl.col("system") == "teacher").select("item_id", teacher="correct")
        both = student.join(teacher, on="item_id").sort("item_id").with_columns(pl.col("confidence").fill_null(0.0))
        return cls.from_answers(*(both[name].to_list() for name in ("confidence", "correct", "teacher")))


@dataclass(frozen=True)
class RoutingPoint:
    """A router with one threshold, measured on some rows. All figures but `threshold` are shares of all requests.

    Attributes:
        coverage: the student's share.
        harm: what the student answers wrongly and the teacher would not.
        gain: what the student answers correctly and the teacher would not.
        accuracy: of the whole, student and teacher together.
        kept_accuracy: of the student's answers that are used; None if there are none.
    """

    threshold: float
    coverage: float
    harm: float
    gain: float
    accuracy: float
    kept_accuracy: float | None

    @property
    def loss(self) -> float:
        """The accuracy lost against the teacher alone. Negative where the router is better."""
        return self.harm - self.gain


def measure_router(rows: RoutingRows, threshold: float) -> RoutingPoint:
    """Measure a router that lets the student answer from a confidence of `threshold`.

    Raises:
        ValueError: there are no rows.
    """
    if not len(rows):
        raise ValueError("there are no rows to measure a router on")
    kept = rows.confidence >= threshold
    right = (kept & rows.student_right) | (~kept & rows.teacher_right)
    return RoutingPoint(
        threshold=threshold,
        coverage=float(kept.mean()),
        harm=float((kept & rows.harmful).mean()),
        gain=float((kept & rows.student_right & ~rows.teacher_right).mean()),
        accuracy=float(right.mean()),
        kept_accuracy=float(rows.student_right[kept].mean()) if kept.any() else None,
    )


def compute_curve(rows: RoutingRows, points: int = 101) -> list[RoutingPoint]:
    """The risk-coverage curve from no coverage to full coverage.

    One point per distinct confidence, thinned evenly to at most `points`. The first and last always stay.
    """
    import numpy as np

    thresholds = [NEVER, *np.unique(rows.confidence)[::-1].tolist()]
    chosen = np.unique(np.linspace(0, len(thresholds) - 1, min(points, len(thresholds))).round().astype(int))
    return [measure_router(rows, thresholds[n]) for n in chosen]


@dataclass(frozen=True)
class RoutingSummary:
    """What the report says about a router between this student and its teacher.

    Attributes:
        sentence: how the threshold was chosen and what it promises, or why there is none.
        threshold: the confidence from which the student answers; None: the teacher answers everything.
        margin: the accuracy that may be lost.
        curves: the risk-coverage curve by split.
        chosen: the router at the threshold by split; empty if there is none.
    """

    sentence: str
    threshold: float | None
    margin: float
    curves: Mapping[str, Sequence[RoutingPoint]]
    chosen: Mapping[str, RoutingPoint]

    def list_points(self) -> dict[str, list[tuple[float, float]]]:
        """By split: (the student's share, accuracy of student and teacher together), for a plot."""
        return {split: [(p.coverage, p.accuracy) for p in curve] for split, curve in self.curves.items()}

    def list_rows(self, split: str) -> list[tuple[str, RoutingPoint]]:
        """Named routers on a split: the teacher alone, the chosen one if there is one, and the student alone."""
        curve = self.curves[split]
        chosen = [("with the threshold", self.chosen[split])] if split in self.chosen else []
        return [("teacher alone", curve[0]), *chosen, ("student alone", curve[-1])]

    def to_dict(self) -> dict[str, Any]:
        """For metrics.json. The first point of a curve has an infinite threshold, which is null."""
        curves = {
            split: [asdict(p) | {"threshold": None if p.threshold == NEVER else p.threshold} for p in curve]
            for split, curve in self.curves.items()
        }
        chosen = {split: asdict(point) for split, point in self.chosen.items()}
        own = {"sentence": self.sentence, "threshold": self.threshold, "margin": self.margin}
        return own | {"chosen": chosen, "curves": curves}
