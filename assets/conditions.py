"""Which asset runs by itself, and when.

The conditions own `seed_prompts` to `filtered_dataset`; training and reports wait for `distill refresh` or a person.
Dagster's ready-made `eager()` loses an edit that is made while its run is in flight, runs on although an output did not
change, and never retries; hence conditions of our own. One hole is left: an edit that is seen on the very tick after a
request is dropped. `distill refresh` compares content and closes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import dagster as dg

from distill_dagster.pipeline.stage_table import MERGING_STAGE

A = dg.AutomationCondition


def _is_ready() -> dg.AutomationCondition:
    """Not while it or what it needs is being made, or is missing, or did not pass its blocking checks."""
    # Dagster's all_deps_blocking_checks_passed waits for checks of a slice that was never made, even in the same run.
    failed = A.any_checks_match(A.check_failed(), blocking_only=True) & ~A.will_be_requested()
    return ~A.in_progress() & ~A.any_deps_in_progress() & ~A.any_deps_missing() & ~A.any_deps_match(failed)


def _is_merge_ready() -> dg.AutomationCondition:
    """A slice that failed holds up no other: it gives its last good rows, or none."""
    awaited = A.any_deps_match(A.missing() & ~A.execution_failed())
    return ~A.in_progress() & ~A.any_deps_in_progress() & ~awaited


def _run_when_ready(
    change: dg.AutomationCondition, label: str, guard: dg.AutomationCondition | None = None
) -> dg.AutomationCondition:
    """The change is kept until the asset may run; a failed run is repeated once."""
    return ((guard or _is_ready()) & (change | A.execution_failed().newly_true())).with_label(label)


def run_when_content_changed(
    label: str, followers: Sequence[dg.AssetKey] = (), guard: dg.AutomationCondition | None = None
) -> dg.AutomationCondition:
    """Anything that the asset is made from, or its code, changed in content.

    It waits for the `followers` of the run before: were it made anew while they still work on what it was, its change
    and their end could be seen at one tick, and they would take the change as handled.
    """
    change = A.any_deps_match(A.data_version_changed()) | A.newly_missing() | A.code_version_changed()
    due: dg.AutomationCondition = change.since(A.newly_requested() | A.initial_evaluation())
    for key in followers:
        due = due & ~A.asset_matches(key, A.in_progress())
    return _run_when_ready(due, label, guard)


def run_after_upstream(first: Sequence[dg.AssetKey] = ()) -> dg.AutomationCondition:
    """What follows within a slice joins the run of what is before it, where that made something new.

    It waits for the assets that come `first`, however many steps before it they are.
    """
    change = A.any_deps_updated().replace("newly_updated", A.data_version_changed())
    change = change | A.newly_missing() | A.code_version_changed()
    handled = A.newly_requested() | A.newly_updated() | A.initial_evaluation()
    due: dg.AutomationCondition = change.since(handled)
    for key in first:
        due = due & ~A.asset_matches(key, A.in_progress() | A.will_be_requested())
    return _run_when_ready(due, "slice_follows")


UNPARTITIONED = ("prompt_context", "teacher_prior", "golden_completions", "teacher_gate")
FOLLOWERS = ("teacher_completions", "scored_completions")


def get_condition(stage: str, key: Callable[[str], dg.AssetKey]) -> dg.AutomationCondition | None:
    """The condition of a stage, or None where a person or a refresh decides; `key` gives the asset key of a stage."""
    if stage == "seed_prompts":
        return run_when_content_changed("slice_changed", [key(name) for name in FOLLOWERS])
    if stage == "teacher_completions":
        # A teacher with other settings is measured before it is paid for.
        return run_after_upstream([key("golden_completions"), key("teacher_gate")])
    if stage in FOLLOWERS:
        return run_after_upstream()
    if stage == MERGING_STAGE:
        return run_when_content_changed("content_changed", guard=_is_merge_ready())
    return run_when_content_changed("content_changed") if stage in UNPARTITIONED else None
