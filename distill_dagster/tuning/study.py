"""The study of one student: its trials, stored after each, so that a search goes on after a kill.

Optuna (Akiba et al. 2019) proposes the settings by its tree-structured Parzen estimator (Bergstra et al. 2011) and
prunes a trial whose validation loss is above the median of the earlier ones at that epoch.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_dagster.core.errors import DistillError
from distill_dagster.student.types import ValidationListener
from distill_dagster.tuning.search_space import SearchSetting, Settings, round_value
from distill_dagster.tuning.trials import TrialResult

if TYPE_CHECKING:
    import optuna

RANDOM_TRIALS = 6
"""Trials with random settings before the estimator has enough to learn from. The first has the current settings."""
TRIALS_BEFORE_PRUNING = 4
"""No trial is pruned before, nor any in its first epoch."""
INSTALL = "Install the extra `tune`: .venv/bin/pip install -c requirements/constraints.txt -e '.[tune]'"

Evaluate = Callable[[Settings, ValidationListener], TrialResult]
TrialListener = Callable[["FinishedTrial"], None]


@dataclass(frozen=True)
class FinishedTrial:
    """A trial that needs no further work. `result` is None if it was pruned or failed; `error` says why it failed."""

    number: int
    settings: Settings
    result: TrialResult | None
    epochs: int
    error: str = ""

    @property
    def state(self) -> str:
        return "complete" if self.result else "failed" if self.error else "pruned"

    @property
    def rank(self) -> tuple[float, float, int]:
        """Larger is better: the score on dev, then the lower validation loss, then the earlier trial."""
        assert self.result is not None
        loss = float("inf") if self.result.loss is None else self.result.loss
        return self.result.score, -loss, -self.number


def require_optuna() -> None:
    """Raises:
    DistillError: the extra `tune` is not installed.
    """
    if importlib.util.find_spec("optuna") is None:
        raise DistillError(f"Tuning needs the package optuna, which is not installed. {INSTALL}")


def list_spaces(file: Path) -> dict[str, list[SearchSetting]]:
    """The search space of each study in a file, by the study's name. The study that was opened last is the first."""
    if not file.is_file():
        return {}
    import optuna

    studies = optuna.get_all_study_summaries(_open_storage(file), include_best_trial=False)
    known = [study for study in studies if "space" in study.user_attrs]
    known.sort(key=lambda study: study.user_attrs["opened"], reverse=True)
    return {study.study_name: [_read_setting(value) for value in study.user_attrs["space"]] for study in known}


def _read_setting(value: dict[str, Any]) -> SearchSetting:
    return SearchSetting(**value | {"choices": tuple(value["choices"])})


def _open_storage(file: Path) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))


class TuningStudy:
    """The trials of one student on one dataset with one search space."""

    def __init__(self, file: Path, name: str, space: Sequence[SearchSetting], current: Settings) -> None:
        """Open the study of this name in a file, or begin it. `current` are the settings of the first trial.

        One process at a time may use a file.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file.parent.mkdir(parents=True, exist_ok=True)
        self.space = [setting.include(current[setting.name]) for setting in space]
        self.current = current
        self._study = optuna.create_study(
            study_name=name,
            storage=_open_storage(file),
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING, n_warmup_steps=2),
        )
        self._study.set_user_attr("space", [asdict(setting) for setting in space])
        self._study.set_user_attr("opened", time.time())
        self._repeat_unfinished()
        if not any(trial.settings == current for trial in self.list_finished()):
            self._study.enqueue_trial(dict(current), skip_if_exists=True)

    def _repeat_unfinished(self) -> None:
        """Let the settings of trials that a killed process left be tried first."""
        from optuna.trial import TrialState

        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if "result" in trial.user_attrs:  # killed between two writes
                self._study.tell(trial.number, TrialResult(**trial.user_attrs["result"]).score)
                continue
            self._study.tell(trial.number, state=TrialState.FAIL)
            if trial.params:
                self._study.enqueue_trial(trial.params)

    def list_finished(self) -> list[FinishedTrial]:
        """The finished trials, in the order in which they ran."""
        return [
            FinishedTrial(
                trial.number,
                trial.user_attrs["settings"],
                TrialResult(**trial.user_attrs["result"]) if "result" in trial.user_attrs else None,
                len(trial.intermediate_values),
                trial.user_attrs.get("error", ""),
            )
            for trial in self._study.get_trials(deepcopy=False)
            if trial.state.is_finished() and trial.user_attrs.get("is_finished")
        ]

    def find_best(self) -> FinishedTrial | None:
        """The best complete trial."""
        return max((t for t in self.list_finished() if t.result), key=lambda trial: trial.rank, default=None)

    def find_current(self) -> FinishedTrial | None:
        """The complete trial with the current settings."""
        return next((t for t in self.list_finished() if t.result and t.settings == self.current), None)

    def run(self, count: int, evaluate: Evaluate, listener: TrialListener) -> None:
        """Run trials until `count` are finished. A trial whose settings cannot be trained is finished too."""
        import optuna
        from optuna.trial import TrialState

        while len(self.list_finished()) < count:
            # Each process begins with another seed, or it would draw the settings of the first one again.
            seed = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=RANDOM_TRIALS)
            trial = self._study.ask()
            settings = {setting.name: setting.suggest(trial) for setting in self.space}
            if settings != self.current:
                settings = {name: round_value(value) for name, value in settings.items()}
            before = next((each for each in self.list_finished() if each.settings == settings), None)
            trial.set_user_attr("settings", settings)
            try:
                result = before.result if before else None  # a training with the same settings gives the same
                result = result or evaluate(settings, self._make_listener(trial))
            except optuna.TrialPruned:
                self._finish(trial, TrialState.PRUNED)
            except DistillError as error:
                self._finish(trial, TrialState.FAIL, error=str(error))
            else:
                self._finish(trial, TrialState.COMPLETE, result.score, result=asdict(result))
            listener(self.list_finished()[-1])

    def _make_listener(self, trial: optuna.Trial) -> ValidationListener:
        import optuna

        def report(epoch: int, scores: dict[str, float]) -> None:
            if epoch > 0:  # epoch 0 is what training starts from
                trial.report(-scores["loss"], epoch)
                if trial.should_prune():
                    raise optuna.TrialPruned

        return report

    def _finish(self, trial: optuna.Trial, state: Any, value: float | None = None, **attributes: Any) -> None:
        for name, attribute in (attributes | {"is_finished": True}).items():
            trial.set_user_attr(name, attribute)
        self._study.tell(trial, value, state=state)
