"""Filter `completion_tokens`: the length of the completion in tokens."""

from __future__ import annotations

from distill_dagster.curation.filters.base import FilterDefaults, FilterExample
from distill_dagster.curation.filters.length_filter import LengthFilter


class CompletionTokens(LengthFilter):
    """The completion (reasoning and answer) has fewer tokens than `min` or more than `max`. The teacher counts them."""

    name = "completion_tokens"
    reason = "completion_tokens"
    measure = "completion_tokens"
    unit = " tokens"
    scorer = "sample"
    defaults = FilterDefaults(bare_value="max")
    kept = FilterExample({"completion_tokens": 40}, {"max": 100})
    dropped = FilterExample({"completion_tokens": 140}, {"max": 100})
