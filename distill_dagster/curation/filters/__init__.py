"""Filters: declarations in task.yaml, each a small class with one drop reason; see docs/filters.md.

    from distill_dagster.curation.filters import FilterSettings, filter_rows, select_filters

    rules = select_filters(FilterSettings(repetition=True, language="en"), about)
    for batch in filter_rows("completions.parquet", rules, about):
        ...

`base` has the one base class, `settings` the block of task.yaml and the order, `run` the query.
"""

from distill_dagster.curation.filters.base import Filter, FilterExample
from distill_dagster.curation.filters.run import filter_rows, map_in_batches, mark_dropped
from distill_dagster.curation.filters.settings import (
    BUILT_IN_FILTERS,
    STEP_REASONS,
    FilterSettings,
    collect_scorers,
    collect_task_scorers,
    find_filter_problems,
    list_declarable_filters,
    list_filter_hash_fields,
    select_filters,
    select_task_filters,
)

__all__ = [
    "BUILT_IN_FILTERS",
    "STEP_REASONS",
    "Filter",
    "FilterExample",
    "FilterSettings",
    "collect_scorers",
    "collect_task_scorers",
    "filter_rows",
    "find_filter_problems",
    "list_declarable_filters",
    "list_filter_hash_fields",
    "map_in_batches",
    "mark_dropped",
    "select_filters",
    "select_task_filters",
]
