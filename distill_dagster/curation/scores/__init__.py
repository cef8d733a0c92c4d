"""Scores of candidates: figures that are computed once per row and version of a scorer, as columns of `scores`.

Thresholds do not belong here. A filter names the scorers that it reads (`filters.base.Filter.scorers`), and only the
scorers that a task's filters need are run. One file per scorer; a scorer that needs numba imports it when it runs.
"""

from distill_dagster.curation.scores.base import Scorer
from distill_dagster.curation.scores.catalogue import SCORERS
from distill_dagster.curation.scores.run import add_scores, bind_scorer, get_scorer_versions

__all__ = ["SCORERS", "Scorer", "add_scores", "bind_scorer", "get_scorer_versions"]
