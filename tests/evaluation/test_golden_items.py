"""Every golden item with all answers: what became of it, its order, and the training rows near to an error."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from distill_dagster.config import Task
from distill_dagster.evaluation.golden_items import find_errors, list_golden_items
from distill_dagster.evaluation.metrics import compute_metrics
from distill_dagster.kinds import get_kind
from distill_dagster.pipeline.stages import nearest_rows
from distill_dagster.tables.schemas import DATASET, build_frame
from tests.evaluation.build import SPEC, row, table
from tests.support.kinds import build_task
from tests.support.task import TASK

KIND = get_kind(Task.model_validate(TASK))
TEXTS = {"g3": "x" * 700}


def _answers(item: str, teacher: str | None, distilled: str | None, base: str = "refund") -> list[dict[str, object]]:
    answers = {"teacher": teacher, "distilled": distilled, "base": base}
    return [row(system, item, "refund", answer) for system, answer in answers.items()]


PREDICTIONS = table(
    [
        *_answers("g1", "refund", "refund"),
        *_answers("g2", "refund", "refund", base="card"),
        *_answers("g3", "card", "card"),
        *_answers("g4", "card", "other"),
        *_answers("g5", "card", "refund"),
        *_answers("g6", "refund", None),
        row("distilled", "d1", "refund", "card", split="dev"),
    ]
)


def test_items_on_which_teacher_and_student_differ_come_first() -> None:
    items = list_golden_items(PREDICTIONS, TEXTS)
    assert [(item.item_id, item.outcome) for item in items] == [
        ("g6", "lost"),
        ("g5", "won"),
        ("g4", "both_differ"),
        ("g3", "inherited"),
        ("g2", "others"),
        ("g1", "right"),
    ]
    assert [item.agrees for item in items] == [False] * 4 + [True] * 2
    assert items[0].answers["distilled"].text == "(no answer)"
    assert list(items[0].answers) == ["teacher", "base", "distilled"]
    assert items[3].text == "x" * 600 + " …"
    assert find_errors(PREDICTIONS, KIND, most=2) == ["g6", "g4"]


def test_without_a_teacher_an_item_is_right_or_wrong() -> None:
    alone = PREDICTIONS.filter(pl.col("system") != "teacher")
    assert [item.outcome for item in list_golden_items(alone, {})] == ["wrong"] * 3 + ["others", "right", "right"]


def test_graded_answers_are_ordered_by_their_difference_in_score() -> None:
    settings = {name: value for name, value in TASK.items() if name not in ("labels", "kind", "teacher")}
    student = {"tiny": {"model": "x", "architecture": "causal_lm"}}
    kind = get_kind(
        Task.model_validate(
            settings | {"kind": "summarization", "students": student, "teacher": {"model": "embedded/x"}}
        )
    )
    reference = "the parcel is late"
    answers = {
        "a": (reference, reference),
        "b": (reference, "the parcel is"),
        "c": (reference, "no"),
        "d": ("no", reference),
    }
    rows = [
        row(system, item, reference, answer)
        for item, both in answers.items()
        for system, answer in zip(("teacher", "distilled"), both, strict=True)
    ]
    items = list_golden_items(table(rows), {}, kind=kind)
    assert [(i.item_id, i.outcome) for i in items] == [("c", "behind"), ("b", "behind"), ("d", "ahead"), ("a", "same")]
    assert 0 < items[1].answers["distilled"].score < 1
    assert find_errors(table(rows), kind, most=9) == ["c", "b"]


def _train(prompt_id: str, text: str, answer: str, split: str = "train", **more: object) -> dict[str, object]:
    turns = [("user", text), ("assistant", answer)]
    messages = [{"role": role, "content": words, "tool_calls": None, "tool_call_id": None} for role, words in turns]
    return (
        {"prompt_id": prompt_id, "slice": "s", "origin": "human", "messages": messages, "answer": json.dumps(answer)}
        | {"split": split, "weight": 1.0, "teacher": None}
        | more
    )


def test_the_nearest_rows_are_those_of_training_with_what_they_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    directions = {"card lost": 0.0, "card gone": 0.3, "pay me back": 1.2, "hello": 1.5}

    def embed(texts: list[str], models: Path) -> np.ndarray:
        return np.array([[np.cos(directions[text]), np.sin(directions[text])] for text in texts], dtype=np.float32)

    monkeypatch.setattr(nearest_rows, "embed_remembered_sentences", embed)
    stated = [{"label": "refund", "prob": 0.9}, {"label": "card", "prob": 0.1}]
    rows = [
        _train("p1", "pay me back", "refund", teacher="big", soft_labels=stated, reasoning="It is about money."),
        _train("p2", "card gone", "card"),
        _train("p3", "card lost", "card", split="validation"),
        _train("p4", "hello", "other"),
    ]
    dataset = build_frame(rows, DATASET, ("prompt_id",))
    found = nearest_rows.find_nearest_rows(dataset, {"g1": "card lost"}, Path("none"), most=2)
    assert [(one.prompt_id, one.similarity) for one in found["g1"]] == [("p2", 0.955), ("p1", 0.362)]
    assert (found["g1"][0].answered_by, found["g1"][0].share, found["g1"][0].reasoning) == ("people", None, None)
    assert (found["g1"][1].answered_by, found["g1"][1].share) == ("big", 0.9)
    assert found["g1"][1].reasoning == "It is about money."
    assert nearest_rows.find_nearest_rows(dataset, {}, Path("none")) == {}


def test_the_same_answer_means_the_same_as_in_the_origins_of_errors() -> None:
    """Equal under the kind, though written in another way; and no answer twice is not the same answer."""
    kind = get_kind(build_task("math"))
    rows = []
    for item, teacher, distilled in (("g1", 7, 7.0), ("g2", None, None), ("g3", 7, 8)):
        for system, answer in (("teacher", teacher), ("distilled", distilled)):
            text = None if answer is None else json.dumps(answer)
            rows.append(row(system, item, "", "x") | {"reference": "5", "answer": text, "correct": False})
    errors = compute_metrics(table(rows), {}, (), SPEC, kind).golden.systems["distilled"].errors
    items = list_golden_items(table(rows), {}, kind=kind)
    assert errors is not None
    assert {item.item_id: item.outcome for item in items} == {
        "g1": "inherited",
        "g2": "both_differ",
        "g3": "both_differ",
    }
    assert (errors.same_answer, errors.another_answer) == (1, 2)
