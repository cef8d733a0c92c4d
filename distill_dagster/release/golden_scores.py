"""Scores of single golden items, which a release keeps so that the next one can be compared with it item by item."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distill_dagster.core.errors import DistillError
from distill_dagster.evaluation.statistics import compute_mcnemar_p_value, compute_permutation_p_value

GOLDEN_SCORES_FILE = "report/golden.json"


@dataclass(frozen=True)
class GoldenScore:
    """The score of one golden item, 0 to 1. `reference` is a hash: an item with another reference is another item."""

    item_id: str
    reference: str
    score: float


@dataclass(frozen=True)
class GoldenComparison:
    """Mean score of one student minus that of another, on the `items` that both have with the same reference.

    `better` and `worse` count the items on which the first one scores higher or lower. The p-value is two-sided.
    """

    items: int
    difference: float
    better: int
    worse: int
    p_value: float


def compare_golden_scores(
    now: Sequence[GoldenScore], before: Sequence[GoldenScore], seed: int
) -> GoldenComparison | None:
    """Compare two students item by item. None if they have no item in common.

    McNemar's exact test (1947) for right and wrong answers, random signs (Fisher 1935) for graded ones.
    """
    import numpy as np

    known = {(one.item_id, one.reference): one.score for one in before}
    pairs = [(one.score, known[key]) for one in now if (key := (one.item_id, one.reference)) in known]
    if not pairs:
        return None
    differences = np.array([first - second for first, second in pairs], dtype=np.float32)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    is_graded = any(score not in (0.0, 1.0) for pair in pairs for score in pair)
    p_value = compute_permutation_p_value(differences, seed) if is_graded else compute_mcnemar_p_value(better, worse)
    mean = sum(first - second for first, second in pairs) / len(pairs)
    return GoldenComparison(len(pairs), mean, better, worse, p_value)


def write_golden_scores(release: Path, scores: Sequence[GoldenScore]) -> None:
    """Write the scores into the folder of a release, which has a folder `report`."""
    text = json.dumps([asdict(score) for score in scores], indent=0) + "\n"
    (release / GOLDEN_SCORES_FILE).write_text(text, encoding="utf-8")


def read_golden_scores(release: Path) -> list[GoldenScore]:
    """The scores that `write_golden_scores` wrote.

    Raises:
        DistillError: the file is missing or damaged.
    """
    file = release / GOLDEN_SCORES_FILE
    try:
        return [GoldenScore(**score) for score in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise DistillError(
            f"{file} cannot be read: {error}. Go back to another release with `distill releases TASK --use N`, or set "
            f"release.gate.no_regression to false."
        ) from None
