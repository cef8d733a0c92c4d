"""The rows of one system as arrays over all items of a split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_dagster.evaluation.metrics.types import NO_ANSWER

if TYPE_CHECKING:
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from distill_dagster.kinds import Kind


def read_answer_label(text: str | None) -> str:
    """The label of a canonical JSON answer, or `NO_ANSWER` for anything that is not a JSON string."""
    try:
        value = json.loads(text) if text is not None else None
    except json.JSONDecodeError:
        value = None
    return value if isinstance(value, str) else NO_ANSWER


def is_binary(kind: Kind | None) -> bool:
    """Whether every item scores 0 or 1. Then exact tests and bounds apply."""
    return kind is None or kind.metric == "accuracy"


@dataclass
class SystemArrays:
    """One system's rows as arrays over all items of the split.

    `present` is 1 if the system has a row for the item, else 0. `scores` has the score of each item: 0 or 1 if answers
    are right or wrong. `answers` has the index of each answer's label, or -1. `texts` has each answer as canonical
    JSON, or None.
    """

    name: str
    present: NDArray[np.float32]
    scores: NDArray[np.float32]
    answers: NDArray[np.int64]
    latencies: list[float]
    second_scores: NDArray[np.float32]
    texts: list[str | None]


def build_system_arrays(
    name: str, part: pl.DataFrame, ids: dict[str, int], codes: dict[str, int], kind: Kind | None
) -> SystemArrays:
    import numpy as np

    places = np.array([ids[item] for item in part["item_id"]], dtype=np.int64)
    present, scores, second_scores = (np.zeros(len(ids), np.float32) for _ in range(3))
    answers = np.full(len(ids), -1, dtype=np.int64)
    present[places] = 1
    texts: list[str | None] = [None] * len(ids)
    for place, answer in zip(places, part["answer"], strict=True):
        texts[place] = answer
    if kind is None:
        scores[places] = part["correct"].cast(int).to_numpy()
        answers[places] = [codes.get(read_answer_label(answer), -1) for answer in part["answer"]]
    else:
        pairs = [
            (None if answer is None else json.loads(answer), json.loads(reference))
            for answer, reference in part.select("answer", "reference").iter_rows()
        ]
        scores[places] = [kind.score(*pair) for pair in pairs]
        second_scores[places] = [kind.score_second(*pair) for pair in pairs] if kind.second_metric else 0
    latencies = part["latency_s"].drop_nulls().drop_nans().to_list()
    return SystemArrays(name, present, scores, answers, latencies, second_scores, texts)
