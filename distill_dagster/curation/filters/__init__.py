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
    list_declarable_filters,
    select_filters,
)

__all__ = [
    "BUILT_IN_FILTERS",
    "STEP_REASONS",
    "Filter",
    "FilterExample",
    "FilterSettings",
    "collect_scorers",
    "filter_rows",
    "list_declarable_filters",
    "map_in_batches",
    "mark_dropped",
    "select_filters",
]
