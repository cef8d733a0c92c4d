from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill_dagster.config import LabelSpec, StudentSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.student.batches import MicroBatches
from distill_dagster.student.token_counts import check_rows_whole, measure_padding
from distill_dagster.student.train import train_adapter
from distill_dagster.student.training_check import check_rows_fit_objective
from distill_dagster.student.types import TRAINING_LOG_FILE, StudentPrompt, TaskSettings, TrainingLog, TrainRow
from tests.support.tiny_model import write_tiny_model

SETTINGS = TaskSettings("Q")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), size=16)


def make_row(text: str, target: str) -> TrainRow:
    return TrainRow(text, StudentPrompt.from_text(text), target, target=target)


def train(
    tiny: Path,
    rows: list[TrainRow],
    out: Path,
    labels: list[LabelSpec] | None = None,
    held: list[TrainRow] | None = None,
    **values: Any,
) -> TrainingLog:
    settings = {"epochs": 1, "max_tokens": 24, "answer_tokens": 6} | values
    spec = StudentSpec(model=str(tiny), architecture="causal_lm", **settings)
    return train_adapter(spec, labels or [], SETTINGS, rows, held or [], out, out)


def test_a_training_counts_what_it_learns(tiny: Path, tmp_path: Path) -> None:
    """A token is a character here. The cue " x" of an answer has one more than the answer, and the end token one.

    A row without an answer would teach to end at once, so it is left out.
    """
    rows = [make_row("a", "abc"), make_row("b", "ab"), make_row("c" * 40, "a"), make_row("d", "")]
    log = train(tiny, rows, tmp_path)
    assert log.prompt == "plain"
    assert (log.rows, log.target_tokens) == (3, (3 + 2) + (2 + 2) + (1 + 2))
    assert (log.prompts_cut, log.targets_cut, log.rows_without_target) == (1, 0, 1)
    assert 0 < log.padding_share < 1
    saved = json.loads((tmp_path / TRAINING_LOG_FILE).read_text())
    assert saved["target_tokens"] == log.target_tokens


def test_cut_answers_are_refused_before_training(tiny: Path, tmp_path: Path) -> None:
    """An answer of five characters with its space and end token has seven tokens; six are allowed."""
    rows = [make_row("a", "abcde"), make_row("b", "abcd"), make_row("c", "a"), make_row("d", "a")]
    with pytest.raises(DistillError, match=r"1 of 4 answers are longer than `answer_tokens`, 6.*`max_cut_targets`"):
        train(tiny, rows, tmp_path)
    assert not (tmp_path / TRAINING_LOG_FILE).exists()
    assert train(tiny, rows, tmp_path, max_cut_targets=0.25).targets_cut == 1
    with pytest.raises(DistillError, match="No row has an answer"):
        train(tiny, [make_row("a", "")], tmp_path)


def test_an_empty_answer_is_not_learned(tiny: Path, tmp_path: Path) -> None:
    """The weights are those of a training without the row, and its weight does not change that of the others."""
    rows = [make_row("a", "abc"), make_row("b", "ab")]
    empty = replace(make_row("c", " "), weight=5.0)
    marked = replace(make_row("d", "Answer:"), weight=5.0)
    logs = [
        train(tiny, taught, tmp_path / str(number), held=[rows[0], *taught[2:]], epochs=3)
        for number, taught in enumerate((rows, [*rows, empty, marked]))
    ]
    assert [log.rows_without_target for log in logs] == [0, 2]
    assert logs[0].losses == logs[1].losses
    assert logs[0].validation == logs[1].validation
    assert train(tiny, rows, tmp_path, held=[empty]).validation == []


@pytest.mark.parametrize("labels", [True, False], ids=["labels", "written answers"])
def test_reasoning_that_is_cut_is_named(labels: bool, tiny: Path, tmp_path: Path) -> None:
    """Its mark is in the prompt, so reasoning of five characters has seven tokens; six are allowed."""
    names = [LabelSpec(name=name, description=name) for name in ("red", "tan")] if labels else []
    rows = [replace(make_row(text, "red"), reasoning=reasoning) for text, reasoning in (("a", "abcde"), ("b", "abcd"))]
    with pytest.raises(DistillError) as raised:
        train(tiny, rows, tmp_path, names, objective="multitask")
    assert str(raised.value).startswith("The reasoning of 1 of 2 rows is longer than `answer_tokens`, 6.")
    assert "`objective.max_reasoning_tokens`" in str(raised.value)
    assert "answers are longer" not in str(raised.value)
    train(tiny, rows, tmp_path, names, objective={"kind": "multitask", "max_reasoning_tokens": 4})
    rows[1] = replace(rows[1], reasoning=" ")
    assert train(tiny, rows, tmp_path, names, objective="multitask", answer_tokens=7).rows_without_target == 0
    if not labels:
        rows[1] = make_row("b", "abcdef")
        with pytest.raises(DistillError, match=r"of 1 of 2 rows is longer .* 1 of 2 answers are longer"):
            train(tiny, rows, tmp_path, objective="multitask")


def test_labels_are_counted_with_their_end(tiny: Path, tmp_path: Path) -> None:
    labels = [LabelSpec(name=name, description=name) for name in ("red", "blue")]
    log = train(tiny, [make_row("a", "red"), make_row("b", "blue")], tmp_path, labels)
    assert log.target_tokens == len(" red") + len(" blue") + 2


def test_padding_is_that_of_what_is_computed_at_once() -> None:
    items = [{"length": length} for length in (1, 3, 4, 4)]
    assert measure_padding(items, [[0, 1], [2, 3]], MicroBatches(None)) == pytest.approx(1 - 12 / 14, abs=1e-4)
    assert measure_padding(items, [[0, 1], [2, 3]], MicroBatches(1)) == 0
    assert measure_padding([], [], MicroBatches(1)) == 0


@pytest.mark.parametrize(
    ("counts", "passed"),
    [((100, 5, 0, 0), True), ((100, 6, 0, 0), False), ((100, 0, 1, 0), False), ((9, 0, 0, 1), False)],
)
def test_the_check_names_what_is_not_whole(counts: tuple[int, int, int, int], passed: bool) -> None:
    result = check_rows_whole(*counts)
    assert (result.passed, result.severity) == (passed, "warning")
    assert list(result.details.values()) == list(counts)


@pytest.mark.parametrize(
    ("objective", "counts", "passed"),
    [
        ({"kind": "soft_label", "weight": 0.5}, (10, 0, 0), False),
        ({"kind": "soft_label", "weight": 0.5}, (10, 1, 0), True),
        ({"kind": "soft_label", "weight": 0.5}, (10, None, 0), True),  # a log of before they were counted
        ({"kind": "attention", "weight": 0.5}, (10, 0, 0), False),
        ({"kind": "answer"}, (10, 0, 0), True),
        ({"kind": "reasoning"}, (10, 0, 5), True),
        ({"kind": "reasoning"}, (10, 0, 6), False),
        ({}, (10, None, 0), True),
    ],
)
def test_the_check_names_rows_without_what_the_objective_learns(
    objective: dict[str, Any], counts: tuple[int, int | None, int], passed: bool
) -> None:
    result = check_rows_fit_objective(objective, *counts)
    assert (result.passed, result.severity) == (passed, "warning")
    assert list(result.details.values()) == list(counts)
