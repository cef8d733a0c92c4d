"""Select the slices of a backfill by name, by range or by state."""

from __future__ import annotations

from typing import Literal

from distill_dagster.core.errors import InputError, Problem
from distill_dagster.pipeline.freshness import TaskState
from distill_dagster.pipeline.stage_table import STAGES
from distill_dagster.tasks import TaskFolder

SliceSelector = Literal["stale", "missing", "failed", "all"]
"""The states that a backfill can select by; see `select_slices_by_state`."""
SLICE_STAGES = tuple(name for name, stage in STAGES.items() if stage.partition == "slice")
"""The stages that run once for each slice."""


def select_named_slices(folder: TaskFolder, slices: list[str]) -> list[str]:
    """The slices with these names, each once, in the order of all slices.

    Raises:
        InputError: there is no such slice.
    """
    known = folder.list_slice_keys()
    for key in slices:
        if key not in known:
            message, remedy = f"there is no slice {key!r}.", f"Known: {', '.join(known)}."
            raise InputError([Problem(folder.path / "slices", message, remedy)])
    return [key for key in known if key in slices]


def select_slice_range(folder: TaskFolder, first: str | None, last: str | None) -> list[str]:
    """All slices from `first` to `last`, both included, in alphabetical order. None means no limit on that side.

    Raises:
        InputError: there is no slice `first` or `last`, or the range is reversed, which Dagster's own command ignores
            without a message.
    """
    select_named_slices(folder, [key for key in (first, last) if key is not None])
    keys = sorted(folder.list_slice_keys())
    start = keys.index(first) if first is not None else 0
    end = keys.index(last) if last is not None else len(keys) - 1
    if start > end:
        message = f"the range from {first!r} to {last!r} is reversed."
        raise InputError([Problem(folder.path / "slices", message, f"Use --from {last} --to {first}.")])
    return keys[start : end + 1]


def select_slices_by_state(state: TaskState, what: SliceSelector, failed: set[str]) -> list[str]:
    """The slices in a state: `stale` if a stage is not fresh, `missing` if a stage was never made.

    Args:
        failed: the slices whose last run failed according to Dagster.
    """
    if what == "all":
        return list(state.slices)
    if what == "failed":
        return [key for key in state.slices if key in failed]
    selected = []
    for key in state.slices:
        states = {state.get_status(stage, key).state for stage in SLICE_STAGES}
        if states & {"missing", "waiting"} or (what == "stale" and states & {"stale", "malformed"}):
            selected.append(key)
    return selected
