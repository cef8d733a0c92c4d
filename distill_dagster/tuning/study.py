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
from distill_dagster.tuning.trials import TrialResult, TrialsChangedError

if TYPE_CHECKING:
    import optuna

RANDOM_TRIALS = 6
"""Trials with random settings before the estimator has enough to learn from. The first has the current settings."""
TRIALS_BEFORE_PRUNING = 4
"""No trial is pruned before, nor any in its first epoch."""
MAX_REPEATS = 1
"""How often the settings of a trial are tried again after a kill. A trial without enough memory is killed each time."""
KILLED = "the process was killed in this trial, and again when it was repeated. The memory may not suffice for it."
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
    known = [study.user_attrs for study in studies if "opened" in study.user_attrs]
    known.sort(key=lambda attributes: attributes["opened"], reverse=True)
    return {attributes["name"]: _read_space(attributes["space"]) for attributes in known}


def _read_space(values: Sequence[dict[str, Any]]) -> list[SearchSetting]:
    return [SearchSetting(**value | {"choices": tuple(value["choices"])}) for value in values]


def _choose_study(
    storage: optuna.storages.BaseStorage,
    name: str,
    space: Sequence[SearchSetting],
    current: Settings,
    runs_trials: bool,
) -> tuple[str, list[SearchSetting]]:
    """The study that goes on, by its key in the file, with the values that it tries.

    Of the studies of this name it is the one that was opened last, if it has the current settings or its ranges can be
    extended by them. Optuna refuses other choices for a setting. A further study begins then.
    """
    import optuna

    summaries = optuna.get_all_study_summaries(storage, include_best_trial=False)
    known = {study.study_name: study.user_attrs for study in summaries if "opened" in study.user_attrs}
    own = [key for key, attributes in known.items() if attributes["name"] == name]
    for key in sorted(own, key=lambda key: float(known[key]["opened"]), reverse=True):
        before = _read_space(known[key]["values"])
        after = _include_current(before, current) if runs_trials else before
        if all(old.can_become(new) for old, new in zip(before, after, strict=True)):
            return key, after
    return f"{name}-{len(own)}", _include_current(space, current)


def _include_current(space: Sequence[SearchSetting], current: Settings) -> list[SearchSetting]:
    return [setting.include(current[setting.name]) for setting in space]


def _open_storage(file: Path) -> optuna.storages.BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    return JournalStorage(JournalFileBackend(str(file), lock_obj=JournalFileOpenLock(str(file))))


class TuningStudy:
    """The trials of one student on one dataset with one search space."""

    def __init__(
        self, file: Path, name: str, space: Sequence[SearchSetting], current: Settings, runs_trials: bool = True
    ) -> None:
        """Open the study of this name in a file, or begin it. One process at a time may use a file.

        Args:
            current: the settings of the first trial. They are among the values that are tried.
            runs_trials: without, the study is opened as it is, whatever the current settings are.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        file.parent.mkdir(parents=True, exist_ok=True)
        storage = _open_storage(file)
        key, self.space = _choose_study(storage, name, space, current, runs_trials)
        self.current = current
        self._study = optuna.create_study(
            study_name=key,
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=TRIALS_BEFORE_PRUNING, n_warmup_steps=2),
        )
        self._study.set_user_attr("name", name)
        self._study.set_user_attr("space", [asdict(setting) for setting in space])
        self._study.set_user_attr("values", [asdict(setting) for setting in self.space])
        self._study.set_user_attr("opened", time.time())  # last: a study without it was killed before
        self._repeat_unfinished()
        if runs_trials:
            self._try_current()

    def _repeat_unfinished(self) -> None:
        """Let the settings of trials that a killed process left be tried first."""
        import optuna
        from optuna.trial import TrialState

        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            found, running = trial.user_attrs, optuna.Trial(self._study, trial._trial_id)
            repeats = found.get("repeats", 0) + ("interrupted" not in found)
            if "result" in found:  # killed between two writes, as in the next two cases
                self._finish(running, TrialState.COMPLETE, TrialResult(**found["result"]).score)
            elif "error" in found:
                self._finish(running, TrialState.FAIL)
            elif "is_finished" in found:
                self._finish(running, TrialState.PRUNED)
            elif "settings" in found and repeats > MAX_REPEATS:
                self._finish(running, TrialState.FAIL, error=KILLED)
            else:
                self._study.tell(trial.number, state=TrialState.FAIL)
                if trial.params:
                    self._study.enqueue_trial(trial.params, user_attrs={"repeats": repeats})

    def _try_current(self) -> None:
        """Let the current settings be tried next, unless they were or will be. A pruned trial says too little."""
        from optuna.trial import TrialState

        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if any(trial.system_attrs.get("fixed_params") == self.current for trial in waiting):
            return
        if not any(trial.settings == self.current and trial.state != "pruned" for trial in self.list_finished()):
            self._study.enqueue_trial(dict(self.current))

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

    @property
    def has_failed_with_current(self) -> bool:
        """Whether the current settings could not be trained."""
        ended = [trial for trial in self.list_finished() if trial.settings == self.current]
        return any(trial.error for trial in ended) and not any(trial.result for trial in ended)

    def run(self, count: int, evaluate: Evaluate, listener: TrialListener) -> None:
        """Run trials until `count` are finished. A trial whose settings cannot be trained is finished too.

        Raises:
            TrialsChangedError: the trial would not be comparable with those before.
        """
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
            before = [each for each in self.list_finished() if each.settings == settings]
            trial.set_user_attr("settings", settings)
            try:
                if any(each.error == KILLED for each in before):
                    raise DistillError(KILLED)
                # A training with the same settings gives the same.
                result = next((each.result for each in before if each.result), None)
                result = result or evaluate(settings, self._make_listener(trial, settings))
            except optuna.TrialPruned:
                self._finish(trial, TrialState.PRUNED)
            except TrialsChangedError:
                self._study.tell(trial, state=TrialState.FAIL)
                raise
            except KeyboardInterrupt:
                trial.set_user_attr("interrupted", True)
                raise
            except DistillError as error:
                self._finish(trial, TrialState.FAIL, error=str(error))
            except (RuntimeError, ValueError, MemoryError) as error:  # such as too little memory of a GPU
                self._finish(trial, TrialState.FAIL, error=f"{type(error).__name__}: {error}")
            else:
                self._finish(trial, TrialState.COMPLETE, result.score, result=asdict(result))
            listener(self.list_finished()[-1])

    def _make_listener(self, trial: optuna.Trial, settings: Settings) -> ValidationListener:
        """Prunes the trial, unless it has the current settings: all others are compared with them."""
        import optuna

        def report(epoch: int, scores: dict[str, float]) -> None:
            if epoch > 0:  # epoch 0 is what training starts from
                trial.report(-scores["loss"], epoch)
                if settings != self.current and trial.should_prune():
                    raise optuna.TrialPruned

        return report

    def _finish(self, trial: optuna.Trial, state: Any, value: float | None = None, **attributes: Any) -> None:
        for name, attribute in (attributes | {"is_finished": True}).items():
            trial.set_user_attr(name, attribute)
        self._study.tell(trial, value, state=state)
