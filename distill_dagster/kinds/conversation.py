"""Conversation: an answer is the next turn."""

from __future__ import annotations

from distill_dagster.kinds.free_text import FreeTextKind
from distill_dagster.kinds.similarity import compute_rouge_l


class ConversationKind(FreeTextKind):
    """Scored by ROUGE-L against the reference turn."""

    metric = "rouge_l"
    similarity = staticmethod(compute_rouge_l)
