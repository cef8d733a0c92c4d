"""Filters: rules over one scored candidate, one file each, named like the filter in task.yaml; see docs/filters.md.

    from distill_dagster.curation.filters import FilterSettings, filter_rows, select_filters

    filters = select_filters(FilterSettings(repetition=True, language="en"), task_view)
    for batch in filter_rows("completions.parquet", filters, task_view):
        ...

`base` is the base class, `catalogue` the order, `settings` the block `curation.filters`, `run` the query. What a filter
needs to compute is a score and belongs to `curation.scores`. Steps that compare rows belong to `curation.dataset`.
"""

from distill_dagster.curation.filters.base import Filter, FilterDefaults, FilterExample, score_expr
from distill_dagster.curation.filters.catalogue import BUILT_IN_FILTERS, STEP_REASONS
from distill_dagster.curation.filters.run import filter_rows, map_in_batches, mark_dropped
from distill_dagster.curation.filters.settings import (
    FilterSettings,
    collect_scorers,
    collect_task_scorers,
    find_filter_problems,
    list_declarable_filters,
    list_filter_hash_fields,
    list_parameters,
    select_filters,
    select_task_filters,
)

__all__ = [
    "BUILT_IN_FILTERS",
    "STEP_REASONS",
    "Filter",
    "FilterDefaults",
    "FilterExample",
    "FilterSettings",
    "collect_scorers",
    "collect_task_scorers",
    "filter_rows",
    "find_filter_problems",
    "list_declarable_filters",
    "list_filter_hash_fields",
    "list_parameters",
    "map_in_batches",
    "mark_dropped",
    "score_expr",
    "select_filters",
    "select_task_filters",
]
