"""Which settings of a student are tuned, and among which values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from distill_dagster.config import StudentSpec, Task
from distill_dagster.config.student import RUN_SETTINGS, check_student
from distill_dagster.core.errors import DistillError

if TYPE_CHECKING:
    import optuna

Value = bool | int | float | str | None
Settings = dict[str, Value]
"""Values of fields of a student by their dotted names, such as `lora.rank`."""

LOG_RATIO = 10
"""A range whose end is at least so many times its start is searched on a logarithmic scale."""
DIGITS = 3
"""Significant digits of a value from a range: a setting is to be read, and more digits change no result."""


@dataclass(frozen=True)
class SearchSetting:
    """One setting that is tuned: `choices`, or every number from `low` to `high`."""

    name: str
    choices: tuple[Value, ...] = ()
    low: float = 0
    high: float = 0

    def suggest(self, trial: optuna.Trial) -> Value:
        """The value of this setting in a trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, self.choices)
        if self.is_whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.is_log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.is_log)

    @property
    def is_log(self) -> bool:
        """Whether a range is searched on a logarithmic scale."""
        return self.low > 0 and self.high >= LOG_RATIO * self.low

    @property
    def is_whole(self) -> bool:
        """Whether a range has whole numbers only."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def can_become(self, other: SearchSetting) -> bool:
        """Whether Optuna can search `other` in a study that searched this: other ends are fine, other choices not."""
        return (self.choices, self.is_log, self.is_whole) == (other.choices, other.is_log, other.is_whole)

    def include(self, value: Value) -> SearchSetting:
        """The same setting, with the value among its values."""
        if not self.choices:
            if isinstance(value, bool) or not isinstance(value, int | float):
                return self
            return replace(self, low=min(self.low, value), high=max(self.high, value))
        if value in self.choices:
            return self
        numbers = [each for each in (*self.choices, value) if isinstance(each, int | float)]
        others = [each for each in (*self.choices, value) if not isinstance(each, int | float)]
        return replace(self, choices=(*others, *sorted(numbers)))

    def list_examples(self) -> tuple[Value, ...]:
        """Values that must be allowed: all choices, or both ends."""
        return self.choices or (self.low, self.high)

    def __str__(self) -> str:
        if self.choices:
            return f"{self.name} {', '.join(map(format_value, self.choices))}"
        return f"{self.name} {format_value(self.low)} to {format_value(self.high)}"


def round_value(value: Value) -> Value:
    """A number from a range with the digits that a person would write."""
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def format_value(value: Value) -> str:
    """A value as it is written in YAML, numbers without needless digits."""
    if isinstance(value, float):
        return f"{value:.{2 * DIGITS}g}"
    return "null" if value is None else str(value)


def format_settings(settings: Mapping[str, Value]) -> str:
    """Settings in one line: `learning_rate 0.001, lora.rank 8`."""
    return ", ".join(f"{name} {format_value(value)}" for name, value in settings.items())


def build_default_space(spec: StudentSpec, has_soft_labels: bool) -> list[SearchSetting]:
    """What is tuned by default: learning rate, batch size, epochs, rank, and the weight of soft labels.

    Args:
        has_soft_labels: whether the student learns from a teacher's probabilities.
    """
    is_encoder, is_full = spec.architecture == "encoder", spec.method == "full"
    # All weights need a learning rate of about a tenth of an adapter's (Schulman et al. 2025, "LoRA Without Regret").
    rates = (1e-5, 5e-4) if is_full else (1e-4, 5e-3)
    space = [
        SearchSetting("learning_rate", low=rates[0], high=rates[1]),
        SearchSetting("batch_size", (8, 16, 32)),
        SearchSetting("epochs", (3, 5, 10) if is_encoder else (1, 2, 3, 5)),
    ]
    if not is_full:
        space.append(SearchSetting("lora.rank", (4, 8, 16, 32)))
    if has_soft_labels and spec.objective is None:
        space.append(SearchSetting("soft_weight", (0.0, 0.5, 1.0)))
    elif has_soft_labels:
        space.append(SearchSetting("objective.weight", (0.25, 0.5, 1.0)))
    return space


def parse_search(options: Iterable[str], default: Sequence[SearchSetting]) -> list[SearchSetting]:
    """The settings that `--search` names: `lora.rank`, `lora.rank=4,8` or `learning_rate=1e-4..1e-2`.

    Raises:
        DistillError: an option cannot be read, names a setting without values that is not tuned by default, or one
            that changes nothing that a student learns.
    """
    known = {setting.name: setting for setting in default}
    found = {}
    for option in options:
        name, sign, text = (part.strip() for part in option.partition("="))
        if name.split(".")[0] in RUN_SETTINGS:
            raise DistillError(
                f"--search {option}: {name} does not change what a student learns. Tune another setting."
            )
        if not sign and name in known:
            found[name] = known[name]
            continue
        if not sign or not name:
            remedy = f"Write `--search {name or 'lora.rank'}=4,8` or `--search learning_rate=1e-4..1e-2`."
            raise DistillError(f"--search {option}: values are missing. Tuned by default: {', '.join(known)}. {remedy}")
        low, dots, high = text.partition("..")
        if dots:
            ends = [_parse_value(end) for end in (low, high)]
            numbers = [end for end in ends if isinstance(end, int | float) and not isinstance(end, bool)]
            if len(numbers) < 2 or not numbers[0] < numbers[1]:
                raise DistillError(
                    f"--search {option}: a range goes from a number to a larger one, such as 1e-4..1e-2."
                )
            found[name] = SearchSetting(name, low=numbers[0], high=numbers[1])
        else:
            found[name] = SearchSetting(name, tuple(_parse_value(each) for each in text.split(",")))
    return list(found.values())


def _parse_value(text: str) -> Value:
    """A value as YAML reads it. PyYAML takes `1e-4`, without a dot, for a text."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return value if isinstance(value, bool | str | None) else text


def read_current(spec: StudentSpec, names: Iterable[str]) -> Settings:
    """The values of a student's settings as they are, by their dotted names.

    Raises:
        DistillError: a student has no such setting.
    """
    current: Settings = {}
    for name in names:
        value: Any = spec
        if name == "soft_weight" and spec.soft_weight is None:
            current[name] = 0.5
            continue
        for part in name.split("."):
            if not hasattr(value, part):
                raise DistillError(f"--search {name}: a student has no such setting. See docs/task-yaml.md.")
            value = getattr(value, part)
        if not isinstance(value, bool | int | float | str | None):
            raise DistillError(f"--search {name}: this is a block. Name one of its fields.")
        current[name] = value
    return current


def list_edits(student: Mapping[str, Any], settings: Mapping[str, Value]) -> list[tuple[tuple[str, ...], Any]]:
    """The changes of a student's block of task.yaml that give it these settings, as (path, value).

    With another rank, `lora.alpha` keeps its ratio to the rank, so that the size of the update stays. rsLoRA divides by
    the root of the rank and keeps `lora.alpha`.
    """
    changed, rank = dict(settings), settings.get("lora.rank")
    spec = StudentSpec.model_validate(dict(student))
    if isinstance(rank, int) and rank != spec.lora.rank and "lora.alpha" not in settings and spec.method != "rslora":
        changed["lora.alpha"] = spec.lora.alpha * rank / spec.lora.rank
    edits: list[tuple[tuple[str, ...], Any]] = []
    block: dict[str, Any] = deepcopy(dict(student))
    for name, wanted in changed.items():
        path: tuple[str, ...] = tuple(name.split("."))
        value: Any = wanted
        outer, _, inner = name.partition(".")
        if inner and isinstance(kind := block.get(outer), str):  # `objective: soft_label`
            path, value = (outer,), {"kind": kind, inner: wanted}
        before = _find(block, path)
        if before != (True, value):
            edits.append((path, value))
            _set(block, path, deepcopy(value))
    return edits


def _find(block: Any, path: tuple[str, ...]) -> tuple[bool, Any]:
    for part in path:
        if not isinstance(block, Mapping) or part not in block:
            return False, None
        block = block[part]
    return True, block


def _set(block: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for part in path[:-1]:
        block = block.setdefault(part, {})
    block[path[-1]] = value


def build_spec(task: Task, name: str, student: Mapping[str, Any], settings: Mapping[str, Value]) -> StudentSpec:
    """The student with these settings.

    Raises:
        DistillError: a value is not allowed.
    """
    block = deepcopy(dict(student))
    for path, value in list_edits(student, settings):
        _set(block, path, value)
    try:
        spec = StudentSpec.model_validate(block)
        check_student(name, spec, task.kind, task.reasoning)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DistillError(f"{place + ': ' if place else ''}{first['msg']} ({format_settings(settings)})") from None
    except ValueError as error:
        raise DistillError(f"{error} ({format_settings(settings)})") from None
    return spec


def check_space(task: Task, name: str, student: Mapping[str, Any], space: Sequence[SearchSetting]) -> None:
    """Check every value before the first trial.

    Raises:
        DistillError: a value is not allowed.
    """
    for setting in space:
        for value in setting.list_examples():
            build_spec(task, name, student, {setting.name: value})
