"""All built-in scorers, by name."""

from __future__ import annotations

from distill_dagster.curation.scores.arithmetic import ARITHMETIC_SCORER
from distill_dagster.curation.scores.boilerplate import BOILERPLATE_SCORER
from distill_dagster.curation.scores.completion import COMPLETION_SCORER
from distill_dagster.curation.scores.language import LANGUAGE_SCORER
from distill_dagster.curation.scores.lengths import LENGTHS_SCORER
from distill_dagster.curation.scores.personal_data import PERSONAL_DATA_SCORER
from distill_dagster.curation.scores.prose import ECHO_SCORER, PROSE_SCORER
from distill_dagster.curation.scores.reasoning import REASONING_SCORER
from distill_dagster.curation.scores.reference import REFERENCE_SCORER
from distill_dagster.curation.scores.refusal import REFUSAL_SCORER

SCORERS = {
    scorer.name: scorer
    for scorer in (
        LENGTHS_SCORER,
        COMPLETION_SCORER,
        REFUSAL_SCORER,
        BOILERPLATE_SCORER,
        ECHO_SCORER,
        LANGUAGE_SCORER,
        PROSE_SCORER,
        REASONING_SCORER,
        ARITHMETIC_SCORER,
        REFERENCE_SCORER,
        PERSONAL_DATA_SCORER,
    )
}
