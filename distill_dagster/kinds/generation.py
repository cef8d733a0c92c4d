"""Generation: an answer is a rewrite, a draft or a translation."""

from __future__ import annotations

from distill_dagster.kinds.free_text import FreeTextKind
from distill_dagster.kinds.similarity import compute_chrf


class GenerationKind(FreeTextKind):
    """Scored by chrF, which compares characters: word endings and other scripts count."""

    metric = "chrf"
    similarity = staticmethod(compute_chrf)
