"""List every golden item with the answers of all systems, and the training rows that are nearest to each error."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from distill_dagster.evaluation.formatting import format_answer, shorten_text
from distill_dagster.evaluation.metrics import DISTILLED, GOLDEN, SYSTEM_ORDER, TEACHER
from distill_dagster.evaluation.metrics.error_origins import is_same_answer

if TYPE_CHECKING:
    import polars as pl

    from distill_dagster.kinds import Kind

OUTCOMES = {
    "lost": "only the teacher is right",
    "won": "only the student is right",
    "both_differ": "both wrong, different answers",
    "inherited": "both wrong, the same answer",
    "wrong": "the student is wrong",
    "behind": "the teacher scores higher",
    "ahead": "the student scores higher",
    "same": "no difference in score",
    "others": "both right, another system is wrong",
    "right": "all are right",
}
"""What became of an item, in the order in which items are shown. Graded answers are behind, ahead or the same."""
AGREED = ("same", "others", "right")
"""Outcomes of items on which teacher and student do not differ and are not wrong."""

ERRORS = ("lost", "both_differ", "inherited", "wrong", "behind")
"""Outcomes of items on which the student is wrong, or scores lower than the teacher."""


@dataclass(frozen=True)
class NearestRow:
    """A training row near to an item. `similarity` is the cosine of the sentence embeddings of the two prompts.

    `answered_by` is the teacher's name or "people", `answer` the answer as text, `share` the probability that the
    soft labels give it, None without soft labels.
    """

    prompt_id: str
    similarity: float
    text: str
    answer: str
    answered_by: str
    share: float | None = None
    reasoning: str | None = None


@dataclass(frozen=True)
class ItemAnswer:
    """One system's answer to an item. `score` is from 0 to 1; `is_wrong` if it is 0. `confidence` may be unknown."""

    text: str
    score: float
    confidence: float | None

    @property
    def is_wrong(self) -> bool:
        return self.score <= 0


@dataclass(frozen=True)
class GoldenItem:
    """An item of the golden set. `answers` has all systems that answered, by name and in the order of a report."""

    item_id: str
    slice: str | None
    text: str
    reference: str
    outcome: str
    answers: Mapping[str, ItemAnswer]
    nearest: tuple[NearestRow, ...] = ()

    @property
    def outcome_title(self) -> str:
        return OUTCOMES[self.outcome]

    @property
    def agrees(self) -> bool:
        """Whether teacher and student are both right, or score the same."""
        return self.outcome in AGREED


def list_golden_items(
    predictions: pl.DataFrame,
    texts: Mapping[str, str],
    nearest: Mapping[str, Sequence[NearestRow]] | None = None,
    kind: Kind | None = None,
) -> list[GoldenItem]:
    """List the golden items that the distilled student answered, those on which it and the teacher differ first.

    Items of one outcome are in the order of their ids. Where answers are graded, `kind` gives the score of each, and
    the largest differences come first.
    """
    import polars as pl

    rows = predictions.filter((pl.col("split") == GOLDEN) & pl.col("reference").is_not_null())
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows.iter_rows(named=True):
        found.setdefault(row["item_id"], {})[row["system"]] = row
    is_graded = kind is not None and not kind.has_labels and kind.metric != "accuracy"
    items = []
    for item_id, systems in found.items():
        if DISTILLED not in systems:
            continue
        order = [name for name in SYSTEM_ORDER if name in systems] + sorted(systems.keys() - set(SYSTEM_ORDER))
        answers = {name: _build_answer(systems[name], kind if is_graded else None) for name in order}
        own = systems[DISTILLED]
        items.append(
            GoldenItem(
                item_id,
                own["slice"],
                shorten_text(texts.get(item_id, "(text not available)")),
                format_answer(own["reference"]),
                _classify_graded(answers) if is_graded else _classify(answers, systems, kind),
                answers,
                tuple((nearest or {}).get(item_id, ())),
            )
        )
    return sorted(items, key=_rank)


def find_errors(predictions: pl.DataFrame, kind: Kind, most: int) -> list[str]:
    """The ids of the golden items on which the distilled student is wrong or behind the teacher, the first `most`."""
    items = list_golden_items(predictions, {}, kind=kind)
    return [item.item_id for item in items if item.outcome in ERRORS][:most]


def build_errors_json(items: Sequence[GoldenItem]) -> list[dict[str, Any]]:
    """The items whose nearest training rows are known, as plain JSON."""
    return [
        {
            "item_id": item.item_id,
            "outcome": item.outcome,
            "reference": item.reference,
            "answer": item.answers[DISTILLED].text,
            "nearest": [asdict(row) for row in item.nearest],
        }
        for item in items
        if item.nearest
    ]


def _build_answer(row: Mapping[str, Any], kind: Kind | None) -> ItemAnswer:
    score = float(row["correct"])
    if kind is not None:
        answer = None if row["answer"] is None else json.loads(row["answer"])
        score = kind.score(answer, json.loads(row["reference"]))
    return ItemAnswer(shorten_text(format_answer(row["answer"])), score, row["confidence"])


def _classify(answers: Mapping[str, ItemAnswer], rows: Mapping[str, Mapping[str, Any]], kind: Kind | None) -> str:
    own, teacher = answers[DISTILLED], answers.get(TEACHER)
    if not own.is_wrong and (teacher is None or not teacher.is_wrong):
        return "others" if any(answer.is_wrong for answer in answers.values()) else "right"
    if teacher is None:
        return "wrong"
    if own.is_wrong != teacher.is_wrong:
        return "lost" if own.is_wrong else "won"
    is_same = is_same_answer(rows[DISTILLED]["answer"], rows[TEACHER]["answer"], kind)
    return "inherited" if is_same else "both_differ"


def _classify_graded(answers: Mapping[str, ItemAnswer]) -> str:
    teacher = answers.get(TEACHER)
    if teacher is None or answers[DISTILLED].score == teacher.score:
        return "same"
    return "behind" if answers[DISTILLED].score < teacher.score else "ahead"


def _rank(item: GoldenItem) -> tuple[int, float, str]:
    teacher = item.answers.get(TEACHER)
    difference = 0.0 if teacher is None else abs(item.answers[DISTILLED].score - teacher.score)
    return (list(OUTCOMES).index(item.outcome), -difference, item.item_id)
