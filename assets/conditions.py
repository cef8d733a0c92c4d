"""Which asset runs by itself, and when.

The conditions own `seed_prompts` to `filtered_dataset`; training and reports wait for `distill refresh` or a person.
Dagster's ready-made `eager()` loses an edit that is made while its run is in flight, runs on although an output did not
change, and never retries; hence conditions of our own. One hole is left: an edit that is seen on the very tick after a
request is dropped. `distill refresh` compares content and closes it.
"""

from __future__ import annotations

import dagster as dg

A = dg.AutomationCondition


def _guard() -> dg.AutomationCondition:
    """Not while it or what it needs is being made, or is missing, or did not pass its blocking checks."""
    return ~A.in_progress() & ~A.any_deps_in_progress() & ~A.any_deps_missing() & A.all_deps_blocking_checks_passed()


def _due(change: dg.AutomationCondition, label: str) -> dg.AutomationCondition:
    """The change is kept until the asset may run; a failed run is repeated once."""
    return (_guard() & (change | A.execution_failed().newly_true())).with_label(label)


def slice_changed() -> dg.AutomationCondition:
    """The first sliced asset: a file of the slice, a setting, or the code changed."""
    change = A.any_deps_match(A.data_version_changed()) | A.newly_missing() | A.code_version_changed()
    return _due(change.since(A.newly_requested() | A.initial_evaluation()), "slice_changed")


def slice_follows() -> dg.AutomationCondition:
    """What follows within a slice joins the run of what is before it, where that made something new."""
    change = A.any_deps_updated().replace("newly_updated", A.data_version_changed())
    change = change | A.newly_missing() | A.code_version_changed()
    handled = A.newly_requested() | A.newly_updated() | A.initial_evaluation()
    return _due(change.since(handled), "slice_follows")


def content_changed() -> dg.AutomationCondition:
    """An asset without partitions: anything that it is made from changed in content."""
    change = A.any_deps_match(A.data_version_changed()) | A.newly_missing() | A.code_version_changed()
    return _due(change.since(A.newly_requested() | A.initial_evaluation()), "content_changed")


CONDITIONS = {
    "prompt_context": content_changed,
    "teacher_prior": content_changed,
    "golden_completions": content_changed,
    "seed_prompts": slice_changed,
    "teacher_completions": slice_follows,
    "scored_completions": slice_follows,
    "filtered_dataset": content_changed,
}


def condition_of(stage: str) -> dg.AutomationCondition | None:
    return CONDITIONS[stage]() if stage in CONDITIONS else None
