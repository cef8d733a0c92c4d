"""The linear probe: multinomial logistic regression on frozen sentence embeddings, taught by soft labels.

It is the first half of LP-FT (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform
Out-of-Distribution"): a head that fits the features before fine-tuning keeps fine-tuning from distorting them.

The penalty pulls the weights to anchors, the embeddings of the label descriptions, and not to zero. So with few rows
the probe is near the base, which predicts the label with the nearest description, and a label without rows can still
be predicted. Many rows know more than the descriptions: then anchors of a quarter of the length fit better. The loss on
other rows chooses both, penalty and length. scikit-learn's LogisticRegression has neither soft targets nor such
anchors, hence SciPy's L-BFGS-B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_dagster.student import losses
from distill_dagster.student.types import TrainRow

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from distill_dagster.config import LabelSpec

    Floats = NDArray[np.floating]

COSINE_TEMPERATURE = 0.05
"""Cosines of sentence embeddings are close to each other. Divided by this, they give a useful softmax."""
PENALTIES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001)
"""Penalties to choose from, the strongest first, so that each fit starts near its solution."""
ANCHOR_SCALES = (1.0, 0.25)
"""Lengths of the anchors to choose from, as multiples of the embeddings of the descriptions."""
START_FACTOR = 10.0
"""A head that fits the training rows as well as it can leaves fine-tuning nothing to learn from them. So fine-tuning
starts from a stronger penalty than the best one."""
FOLDS = 5
MOST_STEPS = 300
"""Steps of L-BFGS for one penalty."""
MOST_ROWS = 50_000
"""Rows that a probe is fitted to. More make it hardly better, and their embeddings take time and memory."""


@dataclass(frozen=True)
class LinearHead:
    """Logits are vectors @ weight.T + bias. `weight` is (labels, dimensions), `bias` (labels,).

    `penalty` and `anchor_scale` are those that were chosen, if the head was fitted.
    """

    weight: Floats
    bias: Floats
    penalty: float | None = None
    anchor_scale: float = 1.0

    def compute_logits(self, vectors: Floats) -> Floats:
        """Logits of embeddings, shape (rows, labels)."""
        return vectors @ self.weight.T + self.bias


@dataclass(frozen=True)
class ProbeRows:
    """Embeddings (rows, dimensions), target distributions (rows, labels) and weights (rows,)."""

    vectors: Floats
    targets: Floats
    weights: Floats

    def take(self, rows: NDArray[np.bool_]) -> ProbeRows:
        """The rows where the mask is true."""
        return ProbeRows(self.vectors[rows], self.targets[rows], self.weights[rows])


def format_descriptions(labels: list[LabelSpec]) -> list[str]:
    """The texts whose embeddings are the anchors."""
    return [f"{label.name}: {label.description}" for label in labels]


def limit_rows(rows: list[TrainRow], most: int = MOST_ROWS) -> list[TrainRow]:
    """At most so many rows, evenly spread over the list."""
    step = max(1.0, len(rows) / most)
    return [rows[int(n * step)] for n in range(min(len(rows), most))]


def build_probe_rows(rows: list[TrainRow], vectors: Floats, labels: list[str], soft_weight: float) -> ProbeRows:
    """Rows to fit or to test: `soft_weight` of a target is the row's soft labels, the rest its answer.

    Raises:
        ValueError: a row names a label that is not one of `labels`.
    """
    import numpy as np

    soft = losses.build_soft_targets(rows, labels, temperature=1.0).numpy()
    hard = np.zeros_like(soft)
    hard[np.arange(len(rows)), [labels.index(row.answer_label) for row in rows]] = 1
    weights = np.array([row.weight for row in rows], dtype=np.float64)
    return ProbeRows(vectors, soft_weight * soft + (1 - soft_weight) * hard, weights)


def fit_linear_probe(
    rows: ProbeRows,
    anchors: Floats,
    held_out: ProbeRows | None = None,
    penalties: Sequence[float] = PENALTIES,
    scales: Sequence[float] = ANCHOR_SCALES,
) -> LinearHead:
    """Fit a linear probe. Keep the penalty and the length of the anchors with the lowest loss on rows not fitted.

    Those rows are `held_out` or, without them, each fifth of the rows in turn (cross-validation). A penalty multiplies
    half the squared distance from the anchors, against the sum of the rows' losses; weights are scaled to a mean of 1.
    The same input gives the same result: nothing is random.

    Args:
        anchors: embeddings of the label descriptions, (labels, dimensions).
        penalties: from the strongest to the weakest.
    """
    import numpy as np

    weights = rows.weights.astype(np.float64)
    rows = ProbeRows(rows.vectors, rows.targets, weights / (weights.mean() or 1.0))
    held = [(rows, held_out)] if held_out is not None else list(_split_folds(rows))
    best, least, chosen = LinearHead(anchors / COSINE_TEMPERATURE, np.zeros(len(anchors))), float("inf"), 0
    for scale in scales:
        lowest = float("inf")
        paths = [_fit_path(fit, anchors, penalties, scale) for fit, _ in held]
        for number, heads in enumerate(zip(*paths, strict=True)):
            loss = sum(compute_mean_loss(head, test) for head, (_, test) in zip(heads, held, strict=True))
            if loss >= lowest:
                break  # the loss falls, then rises; weaker penalties also take the most steps
            lowest = loss
            if loss < least:
                best, least, chosen = heads[0], loss, number
    if held_out is not None:
        return best
    return [*_fit_path(rows, anchors, penalties[: chosen + 1], best.anchor_scale)][chosen]


def fit_start_head(rows: ProbeRows, anchors: Floats, probe: LinearHead) -> LinearHead:
    """Fit the head that fine-tuning starts from: a linear probe with `START_FACTOR` times the penalty of `probe`."""
    return fit_linear_probe(rows, anchors, rows, [START_FACTOR * (probe.penalty or 0.0)], [probe.anchor_scale])


def compute_mean_loss(head: LinearHead, rows: ProbeRows) -> float:
    """Weighted mean of the cross-entropy between targets and predictions, in nats."""
    import numpy as np
    from scipy.special import log_softmax

    losses = -(rows.targets * log_softmax(head.compute_logits(rows.vectors), axis=1)).sum(1)
    return float(np.average(losses, weights=rows.weights)) if rows.weights.sum() else float(losses.mean())


def _split_folds(rows: ProbeRows) -> Iterator[tuple[ProbeRows, ProbeRows]]:
    """(to fit, to test) for each fold. Each label's rows are spread over all folds."""
    import numpy as np

    fold = np.empty(len(rows.targets), dtype=np.int64)
    fold[np.argsort(rows.targets.argmax(1), kind="stable")] = np.arange(len(fold)) % FOLDS
    for number in range(min(FOLDS, len(fold))):
        yield rows.take(fold != number), rows.take(fold == number)


def _fit_path(rows: ProbeRows, anchors: Floats, penalties: Sequence[float], scale: float) -> Iterator[LinearHead]:
    """Fit with each penalty. Each fit starts from the one before, the first from the anchors."""
    import numpy as np
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    start = anchors.astype(np.float64) * scale / COSINE_TEMPERATURE
    labels, dimensions = start.shape
    vectors, weights = rows.vectors.astype(np.float64), rows.weights[:, None]
    targets = rows.targets.astype(np.float64)
    found = np.concatenate([start.ravel(), np.zeros(labels)])

    def compute(flat: Floats, penalty: float) -> tuple[float, Floats]:
        weight, bias = flat[:-labels].reshape(labels, dimensions), flat[-labels:]
        log_probs = log_softmax(vectors @ weight.T + bias, axis=1)
        error = weights * (np.exp(log_probs) * targets.sum(1, keepdims=True) - targets)
        distance = weight - start
        loss = -float((weights * targets * log_probs).sum()) + penalty / 2 * float((distance**2).sum())
        return loss, np.concatenate([(error.T @ vectors + penalty * distance).ravel(), error.sum(0)])

    for penalty in penalties:
        options = {"maxiter": MOST_STEPS}
        found = minimize(compute, found, args=(penalty,), jac=True, method="L-BFGS-B", options=options).x
        weight = found[:-labels].reshape(labels, dimensions)
        yield LinearHead(weight.astype(np.float32), found[-labels:].astype(np.float32), penalty, scale)
