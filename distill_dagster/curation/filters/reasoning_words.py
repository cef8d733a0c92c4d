"""Filter `reasoning_words`: the length of the reasoning."""

from __future__ import annotations

from distill_dagster.curation.filters.base import FilterDefaults, FilterExample
from distill_dagster.curation.filters.length_filter import LengthFilter


class ReasoningLength(LengthFilter):
    """The reasoning has fewer words than `min` or more than `max`. A row without reasoning is kept."""

    name = "reasoning_words"
    reason = "reasoning_length"
    measure = "reasoning_words"
    defaults = FilterDefaults(
        kinds={kind: {"min": 3, "max": 600} for kind in ("math", "qa", "classification", "nli")},
        reasoning_kinds=("classification", "nli", "math", "qa"),
        bare_value="max",
    )
    kept = FilterExample({"reasoning": "Three times four is twelve."}, {"min": 4})
    dropped = FilterExample({"reasoning": "It is so."}, {"min": 4})
