"""Automation conditions: which asset runs automatically, and when.

They cover `seed_prompts` to `filtered_dataset`. Training and reports wait for `distill refresh` or a person. Dagster's
`eager()` misses an edit made while its run is in progress, continues although an output did not change, and never
retries, so these conditions replace it. One gap remains: an edit seen on the tick right after a request is dropped.
`distill refresh` compares content and closes the gap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import dagster as dg

from distill_dagster.pipeline.stage_table import MERGING_STAGE

A = dg.AutomationCondition


def _is_ready() -> dg.AutomationCondition:
    """True unless the asset or an input is in progress, an input is missing, or an input failed a blocking check."""
    # Dagster's all_deps_blocking_checks_passed also waits for checks of a slice that has never been made.
    failed = A.any_checks_match(A.check_failed(), blocking_only=True) & ~A.will_be_requested()
    return ~A.in_progress() & ~A.any_deps_in_progress() & ~A.any_deps_missing() & ~A.any_deps_match(failed)


def _is_merge_ready() -> dg.AutomationCondition:
    """True as `_is_ready`, except that a failed slice blocks nothing: it contributes its last good rows, or none."""
    pending = A.any_deps_match(A.missing() & ~A.execution_failed())
    return ~A.in_progress() & ~A.any_deps_in_progress() & ~pending


def _run_when_ready(
    change: dg.AutomationCondition, label: str, guard: dg.AutomationCondition | None = None
) -> dg.AutomationCondition:
    """Keep the change until the asset can run, and repeat a failed run once."""
    return ((guard or _is_ready()) & (change | A.execution_failed().newly_true())).with_label(label)


def run_when_content_changed(
    label: str, followers: Sequence[dg.AssetKey] = (), guard: dg.AutomationCondition | None = None
) -> dg.AutomationCondition:
    """Run when an input or the code of the asset changed in content.

    It waits until the `followers` of the previous run end. Otherwise Dagster could see the new output and the end of
    their run on one tick, and would count the new output as handled.
    """
    change = A.any_deps_match(A.data_version_changed()) | A.newly_missing() | A.code_version_changed()
    due: dg.AutomationCondition = change.since(A.newly_requested() | A.initial_evaluation())
    for key in followers:
        due = due & ~A.asset_matches(key, A.in_progress())
    return _run_when_ready(due, label, guard)


def run_after_upstream(first: Sequence[dg.AssetKey] = ()) -> dg.AutomationCondition:
    """Join the run of the upstream asset of the same slice if its output changed.

    It waits for the assets in `first`, which may be several steps upstream.
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
    """Return the condition of a stage, or None if only a person or a refresh runs it.

    Args:
        key: Gives the asset key of a stage.
    """
    if stage == "seed_prompts":
        return run_when_content_changed("slice_changed", [key(name) for name in FOLLOWERS])
    if stage == "teacher_completions":
        # Measure a teacher with changed settings before paying for slices.
        return run_after_upstream([key("golden_completions"), key("teacher_gate")])
    if stage in FOLLOWERS:
        return run_after_upstream()
    if stage == MERGING_STAGE:
        return run_when_content_changed("content_changed", guard=_is_merge_ready())
    return run_when_content_changed("content_changed") if stage in UNPARTITIONED else None
