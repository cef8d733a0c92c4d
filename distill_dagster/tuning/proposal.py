"""The best settings as a change of task.yaml: what would change, the evidence, and making the change."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import write_atomically
from distill_dagster.evaluation.statistics import (
    Interval,
    compute_bootstrap_sums,
    compute_difference_interval,
    compute_percentile_interval,
)
from distill_dagster.new_task.yaml_edit import set_field
from distill_dagster.pipeline.open_task import build_task_folder
from distill_dagster.tasks import TASK_FILE, TaskFolder
from distill_dagster.tuning.search_space import Settings, format_value, list_edits, read_current
from distill_dagster.tuning.trials import TrialResult


@dataclass(frozen=True)
class Proposal:
    """A new text of a task.yaml. `diff` is empty if nothing would change."""

    path: Path
    before: str
    after: str
    diff: str


def read_student_block(folder: TaskFolder, student: str) -> dict[str, Any]:
    """A student's block of task.yaml as it is written.

    Raises:
        DistillError: task.yaml cannot be read, or has no such student.
    """
    path = folder.path / TASK_FILE
    try:
        block = yaml.safe_load(read_task_text(folder))["students"][student]
        return dict(block)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DistillError(f"{path} cannot be read: {error}. Correct it, and run the command again.") from None
    except (KeyError, TypeError, ValueError):
        raise DistillError(f"{path} has no student {student!r}. Add it again, and run the command again.") from None


def read_task_text(folder: TaskFolder) -> str:
    """The text of task.yaml."""
    return (folder.path / TASK_FILE).read_text(encoding="utf-8")


def propose(folder: TaskFolder, student: str, block: Mapping[str, Any], settings: Settings) -> Proposal:
    """The change of task.yaml that gives a student these settings. Comments and order stay.

    Args:
        block: the student's block that the trials started from.

    Raises:
        DistillError: the block has changed since, or cannot be edited.
    """
    before = after = read_task_text(folder)
    path = folder.path / TASK_FILE
    if read_student_block(folder, student) != block:
        raise DistillError(f"{path}: student {student} was changed while it was tuned. Run the command again.")
    current = read_current(folder.task.students[student], list(settings))
    changed = {name: value for name, value in settings.items() if value != current[name]}
    edits = [(("students", student, *name), value) for name, value in list_edits(block, changed)]
    for place, value in edits:
        edited = set_field(after, place, value)
        if not _is_edited(after, edited, place, value):
            wanted = ", ".join(f"{'.'.join(each)}: {format_value(setting)}" for each, setting in edits)
            raise DistillError(
                f"{path}: {'.'.join(place)} cannot be set without changing other fields: it is written with an anchor "
                f"or a merge of YAML (`&`, `*`, `<<`). Edit the file by hand. The settings are {wanted}."
            )
        after = edited
    old, new = (text.splitlines(keepends=True) for text in (before, after))
    diff = "".join(difflib.unified_diff(old, new, f"a/{folder.name}/{TASK_FILE}", f"b/{folder.name}/{TASK_FILE}", n=2))
    return Proposal(path, before, after, diff)


def _is_edited(before: str, after: str, place: Sequence[str], value: Any) -> bool:
    """Whether the second text is the first with this field set, and nothing else is changed."""
    expected = _copy_without_aliases(yaml.safe_load(before))
    block = expected
    for name in place[:-1]:
        block = block.setdefault(name, {})
    block[place[-1]] = value
    try:
        return bool(yaml.safe_load(after) == expected)
    except yaml.YAMLError:
        return False


def _copy_without_aliases(value: Any) -> Any:
    """A copy in which no two fields are one object, as `*` of YAML makes them. `deepcopy` would keep them."""
    if isinstance(value, dict):
        return {key: _copy_without_aliases(each) for key, each in value.items()}
    return [_copy_without_aliases(each) for each in value] if isinstance(value, list) else value


def apply_proposal(folder: TaskFolder, proposal: Proposal) -> None:
    """Write the new task.yaml.

    Raises:
        InputError: the edited file would have a problem. The old one is back then.
    """
    write_atomically(proposal.path, proposal.after)
    try:
        build_task_folder(folder.path, folder.accepted).task  # noqa: B018 - raises if the file has a problem
    except DistillError:
        write_atomically(proposal.path, proposal.before)
        raise


def compare_trials(best: TrialResult, current: TrialResult, confidence: float, samples: int, seed: int = 0) -> Interval:
    """Mean score of `best` minus that of `current` on the same items, with a paired bootstrap interval.

    The best of many trials was chosen on these items, so its lead looks larger than it is.
    """
    import numpy as np

    first, second = np.array(best.scores, np.float32), np.array(current.scores, np.float32)
    difference = first - second
    draws = compute_bootstrap_sums(difference[:, None], samples, seed)[:, 0] / len(difference)
    if set(np.unique(np.concatenate([first, second]))) <= {0.0, 1.0}:
        only_first, only_second = int((difference > 0).sum()), int((difference < 0).sum())
        return compute_difference_interval(only_first, only_second, len(difference), draws, confidence)
    return compute_percentile_interval(float(difference.mean()), draws, confidence)
