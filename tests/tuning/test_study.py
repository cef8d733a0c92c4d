"""The study of a student: which trial comes next, when one ends early, and what is kept of an interrupted one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from distill_dagster.core.errors import DistillError
from distill_dagster.student.types import ValidationListener
from distill_dagster.tuning.search_space import SearchSetting, Settings
from distill_dagster.tuning.study import KILLED, FinishedTrial, TuningStudy, list_spaces
from distill_dagster.tuning.trials import TrialResult, TrialsChangedError

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


EPOCHS = [SearchSetting("epochs", (3, 5, 10))]


def try_all(study: TuningStudy, count: int) -> None:
    study.run(count, make_evaluate(lambda trial, epoch: 0.5, []), lambda _: None)


def test_a_study_goes_on_after_its_settings_were_applied(tmp_path: Path) -> None:
    """The settings of the first trial stay among the choices: Optuna refuses other ones in the same study."""
    file = tmp_path / "study.journal"
    try_all(TuningStudy(file, "a", EPOCHS, {"epochs": 2}), 3)
    applied = TuningStudy(file, "a", EPOCHS, {"epochs": 5})
    assert applied.space[0].choices == (2, 3, 5, 10)
    try_all(applied, 8)
    assert len(applied.list_finished()) == 8
    other = TuningStudy(file, "a", EPOCHS, {"epochs": 7})  # the study has no such choice
    assert other.space[0].choices == (3, 5, 7, 10)
    try_all(other, 2)
    assert [trial.number for trial in other.list_finished()] == [0, 1]
    assert len(TuningStudy(file, "a", EPOCHS, {"epochs": 10}).list_finished()) == 2  # the last one that has it
    assert len(TuningStudy(file, "a", EPOCHS, {"epochs": 2}).list_finished()) == 8
    assert list_spaces(file) == {"a": EPOCHS}
    shown = TuningStudy(file, "a", EPOCHS, {"epochs": 99}, runs_trials=False)
    assert len(shown.list_finished()) == 8
    try_all(TuningStudy(file, "a", EPOCHS, {"epochs": 2}), 9)  # nothing of 99 was kept


def test_a_range_stays_as_wide_as_it_was(tmp_path: Path) -> None:
    file, space = tmp_path / "study.journal", [SearchSetting("learning_rate", low=1e-3, high=5e-3)]
    try_all(TuningStudy(file, "a", space, {"learning_rate": 0.01}), 3)
    applied = TuningStudy(file, "a", space, {"learning_rate": 2e-3})
    assert (applied.space[0].high, applied.space[0].is_log) == (0.01, True)
    try_all(applied, 6)
    wider = TuningStudy(file, "a", space, {"learning_rate": 0.02})
    try_all(wider, 8)
    assert [trial.settings for trial in wider.list_finished()].count({"learning_rate": 0.02}) == 1
    assert len(wider.list_finished()) == 8


def test_the_current_settings_are_never_pruned(tmp_path: Path) -> None:
    losses = [0.1, 0.1, 0.1, 0.1, 0.9, 0.9]
    seen: list[Settings] = []
    evaluate = make_evaluate(lambda trial, epoch: losses[trial], seen)
    open_study(tmp_path).run(5, evaluate, lambda _: None)
    pruned = open_study(tmp_path).list_finished()[4]
    assert pruned.state == "pruned"
    changed = TuningStudy(tmp_path / "study.journal", "a", SPACE, pruned.settings)
    assert changed.find_current() is None
    assert not changed.has_failed_with_current
    changed.run(6, evaluate, lambda _: None)
    assert seen[5] == pruned.settings
    current = changed.find_current()
    assert current is not None
    assert current.number == 5


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("NaN"), MemoryError("full")])
def test_an_error_of_the_training_ends_only_its_trial(tmp_path: Path, error: Exception) -> None:
    seen: list[Settings] = []
    evaluate = make_evaluate(lambda trial, epoch: 0.5, seen)

    def fail_first(settings: Settings, on_validation: ValidationListener) -> TrialResult:
        if not seen:
            seen.append(settings)
            raise error
        return evaluate(settings, on_validation)

    study = open_study(tmp_path)
    study.run(3, fail_first, lambda _: None)
    assert [trial.state for trial in study.list_finished()] == ["failed", "complete", "complete"]
    assert study.list_finished()[0].error == f"{type(error).__name__}: {error}"
    assert study.has_failed_with_current


class Kill(BaseException):
    """Ends a process as a kill does: nothing is written."""


def test_a_trial_that_is_killed_again_is_not_repeated(tmp_path: Path) -> None:
    seen: list[Settings] = []
    evaluate = make_evaluate(lambda trial, epoch: 0.5, seen)
    tried: list[Settings] = []

    def kill(error: BaseException) -> Callable[..., TrialResult]:
        def evaluate(settings: Settings, on_validation: ValidationListener) -> TrialResult:
            tried.append(settings)
            raise error

        return evaluate

    for error in (KeyboardInterrupt(), Kill(), KeyboardInterrupt(), Kill()):  # Ctrl-C is not the trial's fault
        with pytest.raises(type(error)):
            open_study(tmp_path).run(3, kill(error), lambda _: None)
    assert tried == [CURRENT] * 4
    study = open_study(tmp_path)
    assert [trial.error for trial in study.list_finished()] == [KILLED]
    study.run(3, evaluate, lambda _: None)
    assert CURRENT not in seen
    assert len(seen) == 2


def test_a_trial_of_changed_rows_ends_the_command(tmp_path: Path) -> None:
    def change(settings: Settings, on_validation: ValidationListener) -> TrialResult:
        raise TrialsChangedError("made again")

    with pytest.raises(TrialsChangedError):
        open_study(tmp_path).run(3, change, lambda _: None)
    assert open_study(tmp_path).list_finished() == []


def test_a_kill_while_a_trial_is_written_loses_nothing(tmp_path: Path) -> None:
    """The journal is cut after each of its last entries, as by a kill there."""
    seen: list[Settings] = []
    study = open_study(tmp_path)
    study.run(2, make_evaluate(lambda trial, epoch: 0.5, seen), lambda _: None)
    study.run(3, lambda *_: _fail(), lambda _: None)
    file = tmp_path / "study.journal"
    lines = file.read_text().splitlines(keepends=True)
    writes = [number for number, line in enumerate(lines) if "result" in line or "is_finished" in line]
    for number in writes:
        file.write_text("".join(lines[: number + 1]))
        for _ in range(2):  # the second command sees what the first one has written
            finished = open_study(tmp_path).list_finished()
            ended = json.loads(lines[number])["trial_id"]
            assert finished[-1].number == ended
            assert [trial.state for trial in finished] == ["complete", "complete", "failed"][: ended + 1]


def _fail() -> TrialResult:
    raise DistillError("not enough memory")
