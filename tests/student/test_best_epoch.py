"""Early stopping: which epoch is kept, and when a training ends."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from distill_dagster.student.best_epoch import BestEpoch
from distill_dagster.student.causal import CausalStudent
from distill_dagster.student.train import train_adapter
from tests.student.test_training import HELD, LABELS, ROWS, SETTINGS, SMOLLM2


def test_the_weights_of_the_lowest_loss_come_back() -> None:
    model = torch.nn.Linear(2, 1)
    model.bias.requires_grad_(False)
    best, stops = BestEpoch(model, patience=2), []
    for epoch, loss in enumerate([math.nan, 3.0, 1.0, 1.0, 2.0], start=1):
        with torch.no_grad():
            model.weight.fill_(float(epoch))
            model.bias.fill_(float(epoch))
        stops.append(best.add_epoch(epoch, loss))
    best.restore()
    assert (best.epoch, best.loss) == (3, 1.0)
    assert stops == [False, False, False, False, True]
    assert model.weight.tolist() == [[3.0, 3.0]]
    assert model.bias.tolist() == [5.0]  # frozen: not training's business


def test_a_loss_that_is_never_a_number_ends_training_and_changes_nothing() -> None:
    model = torch.nn.Linear(1, 1)
    weights = model.weight.clone()
    best = BestEpoch(model, patience=1)
    assert best.add_epoch(1, math.nan)
    best.restore()
    assert best.epoch is None
    torch.testing.assert_close(model.weight, weights)


def other_label(label: str) -> str:
    return {"red": "blue", "blue": "red"}[label]


@pytest.mark.parametrize("patience", [2, None])
def test_training_stops_and_saves_the_best_epoch(patience: int | None, small_smollm2: Path, tmp_path: Path) -> None:
    """The validation rows contradict the training rows, so the more the student learns, the worse it gets."""
    spec = SMOLLM2.model_copy(update={"model": str(small_smollm2), "patience": patience, "learning_rate": 1e-2})
    against = [replace(row, answer_label=other_label(row.answer_label), soft={}) for row in HELD]
    log = train_adapter(spec, LABELS, SETTINGS, ROWS, against, tmp_path / "a", tmp_path, epochs=6)
    losses = [scores["loss"] for scores in log.validation]
    saved = CausalStudent(spec, LABELS, SETTINGS, tmp_path)
    saved.load_adapter(tmp_path / "a", merge=False)
    kept = saved.compute_validation_scores(against)["loss"]
    if patience is None:
        assert (log.epochs, log.best_epoch, len(losses)) == (6, None, 6)
        assert kept == pytest.approx(losses[-1], abs=1e-4)
    else:
        best = losses.index(min(losses))
        assert best < 4
        assert log.best_epoch == best + 1
        assert log.epochs == len(losses) == best + 1 + patience
        assert log.steps == log.losses[-1][0] == log.epochs * 4
        assert kept == pytest.approx(losses[best], abs=1e-4)
        assert kept < losses[-1]


def test_without_validation_all_epochs_run(small_smollm2: Path, tmp_path: Path) -> None:
    spec = SMOLLM2.model_copy(update={"model": str(small_smollm2), "patience": 1})
    log = train_adapter(spec, LABELS, SETTINGS, ROWS[:8], [], tmp_path / "a", tmp_path, epochs=3)
    assert (log.epochs, log.best_epoch, log.validation) == (3, None, [])
