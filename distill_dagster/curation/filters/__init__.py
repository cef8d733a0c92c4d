"""Filters: declarations in task.yaml, each a small class with one drop reason; see docs/filters.md.

    from distill_dagster.curation.filters import Filters, filter_rows, in_order

    rules = in_order(Filters(repetition=True, language="en"), about)
    for batch in filter_rows("completions.parquet", rules, about):
        ...

`base` has the one base class, `settings` the block of task.yaml and the order, `run` the query.
"""

from distill_dagster.curation.filters.base import Example, Filter
from distill_dagster.curation.filters.run import batched, filter_rows, marked
from distill_dagster.curation.filters.settings import FILTERS, STEPS, Filters, declarable, in_order, scorers_of

__all__ = [
    "FILTERS",
    "STEPS",
    "Example",
    "Filter",
    "Filters",
    "batched",
    "declarable",
    "filter_rows",
    "in_order",
    "marked",
    "scorers_of",
]
