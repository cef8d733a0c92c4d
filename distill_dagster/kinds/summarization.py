"""Summarization: an answer is a summary of the prompt."""

from __future__ import annotations

from distill_dagster.kinds.free_text import FreeTextKind
from distill_dagster.kinds.similarity import compute_rouge_l


class SummaryKind(FreeTextKind):
    """Scored by ROUGE-L against a reference summary."""

    metric = "rouge_l"
    similarity = staticmethod(compute_rouge_l)
