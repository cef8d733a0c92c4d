"""The study of a student: which trial comes next, when one ends early, and what is kept of an interrupted one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from distill_dagster.core.errors import DistillError
from distill_dagster.student.types import ValidationListener
from distill_dagster.tuning.search_space import SearchSetting, Settings
from distill_dagster.tuning.study import FinishedTrial, TuningStudy
from distill_dagster.tuning.trials import TrialResult

SPACE = [SearchSetting("learning_rate", low=1e-4, high=1e-2), SearchSetting("batch_size", (8, 16, 32))]
CURRENT: Settings = {"learning_rate": 1e-3, "batch_size": 64}


def open_study(folder: Path, name: str = "a") -> TuningStudy:
    return TuningStudy(folder / "study.journal", name, SPACE, CURRENT)


def make_evaluate(losses: Callable[[int, int], float], seen: list[Settings]) -> Callable[..., TrialResult]:
    """Trials of four epochs, with the loss of a trial after an epoch. Their score is 1 less the loss."""

    def evaluate(settings: Settings, on_validation: ValidationListener) -> TrialResult:
        number = len(seen)
        seen.append(settings)
        for epoch in range(5):
            on_validation(epoch, {"loss": losses(number, epoch)})
        loss = losses(number, 4)
        return TrialResult([1 - loss] * 4, loss, 4, 4, 1.0, 10)

    return evaluate


def test_the_first_trial_has_the_current_settings_and_hopeless_ones_end_early(tmp_path: Path) -> None:
    seen: list[Settings] = []
    told: list[FinishedTrial] = []
    study = open_study(tmp_path)
    study.run(6, make_evaluate(lambda trial, epoch: (0.9 if trial == 5 else 0.5) - 0.1 * epoch, seen), told.append)
    assert seen[0] == CURRENT
    assert all(settings["batch_size"] in (8, 16, 32, 64) for settings in seen)
    assert all(len(f"{settings['learning_rate']:g}".lstrip("0.")) <= 5 for settings in seen)
    assert [trial.state for trial in told] == ["complete"] * 5 + ["pruned"]
    assert told[5].epochs == 2
    assert study.list_finished() == told
    assert study.find_current() == told[0]
    assert study.find_best() == told[0]  # of equal trials the first


def test_a_study_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    seen: list[Settings] = []
    evaluate = make_evaluate(lambda trial, epoch: 0.5 - 0.01 * trial, seen)

    def stop_at_third(settings: Settings, on_validation: ValidationListener) -> TrialResult:
        if len(seen) == 2:
            seen.append(settings)
            raise KeyboardInterrupt
        return evaluate(settings, on_validation)

    with pytest.raises(KeyboardInterrupt):
        open_study(tmp_path).run(4, stop_at_third, lambda _: None)
    again = open_study(tmp_path)
    assert len(again.list_finished()) == 2
    again.run(4, evaluate, lambda _: None)
    assert seen[3] == seen[2]  # the interrupted trial is repeated
    assert len({settings["learning_rate"] for settings in seen}) == 4
    assert len(again.list_finished()) == 4
    again.run(4, evaluate, lambda _: None)
    assert len(seen) == 5
    other = open_study(tmp_path, "b")
    assert other.list_finished() == []


def test_the_same_settings_are_not_trained_twice(tmp_path: Path) -> None:
    seen: list[Settings] = []
    study = TuningStudy(tmp_path / "study.journal", "a", [SearchSetting("epochs", (1, 2))], {"epochs": 1})
    study.run(6, make_evaluate(lambda trial, epoch: 0.5, seen), lambda _: None)
    assert len(study.list_finished()) == 6
    assert seen == [{"epochs": 1}, {"epochs": 2}]


def test_of_equal_scores_the_lower_loss_is_better(tmp_path: Path) -> None:
    results = iter([(0.5, 0.7), (0.5, 0.6), (0.25, 0.1)])

    def evaluate(settings: Settings, on_validation: ValidationListener) -> TrialResult:
        score, loss = next(results)
        return TrialResult([score] * 4, loss, 1, 1, 1.0, 10)

    study = open_study(tmp_path)
    study.run(3, evaluate, lambda _: None)
    best = study.find_best()
    assert best is not None
    assert best.number == 1


def test_a_trial_that_cannot_be_trained_counts_and_is_not_the_best(tmp_path: Path) -> None:
    def evaluate(settings: Settings, on_validation: ValidationListener) -> TrialResult:
        raise DistillError("not enough memory")

    study = open_study(tmp_path)
    study.run(2, evaluate, lambda _: None)
    assert [(trial.state, trial.error) for trial in study.list_finished()] == [("failed", "not enough memory")] * 2
    assert study.find_best() is None
    assert study.find_current() is None
