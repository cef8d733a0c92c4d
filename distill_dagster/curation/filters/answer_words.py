"""Filter `answer_words`: the length of the answer."""

from __future__ import annotations

from distill_dagster.curation.filters.base import FilterDefaults, FilterExample
from distill_dagster.curation.filters.length_filter import LengthFilter
from distill_dagster.curation.task_view import FREE_TEXT_KINDS


class AnswerLength(LengthFilter):
    """The answer has fewer words than `min` or more than `max`."""

    name = "answer_words"
    reason = "answer_length"
    measure = "answer_words"
    defaults = FilterDefaults(
        kinds={
            "qa": {"min": 1, "max": 200},
            **{kind: {"min": 2, "max": 1500} for kind in FREE_TEXT_KINDS},
        },
        bare_value="max",
    )
    kept = FilterExample({"answer": "Two words."}, {"min": 2, "max": 3})
    dropped = FilterExample({"answer": "These are more than three."}, {"min": 2, "max": 3})
