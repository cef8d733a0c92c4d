"""Filter `toxicity`: texts that a local classifier rates as toxic."""

from __future__ import annotations

from distill_dagster.curation.filters.base import FilterExample
from distill_dagster.curation.filters.classifier_filter import ClassifierFilter


class Toxicity(ClassifierFilter):
    """A local classifier rates the teacher's text as toxic."""

    name = "toxicity"
    reason = "toxic"
    field = "toxicity"
    kept = FilterExample({"answer": "Have a good day."}, {"use": "shouting"})
    dropped = FilterExample({"answer": "GO AWAY"}, {"use": "shouting"})
