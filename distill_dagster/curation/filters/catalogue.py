"""All built-in filters in the order of application, and the drop reasons of the steps after them."""

from __future__ import annotations

from distill_dagster.curation.filters.answer_first import AnswerFirst
from distill_dagster.curation.filters.answer_words import AnswerLength
from distill_dagster.curation.filters.arithmetic import Arithmetic
from distill_dagster.curation.filters.base import Filter
from distill_dagster.curation.filters.boilerplate import Boilerplate
from distill_dagster.curation.filters.completion_tokens import CompletionTokens
from distill_dagster.curation.filters.contradiction import Contradiction
from distill_dagster.curation.filters.echo import Echo
from distill_dagster.curation.filters.gold import ReferenceMismatch
from distill_dagster.curation.filters.high_confidence import HighConfidence
from distill_dagster.curation.filters.injection import Injection
from distill_dagster.curation.filters.invalid_answer import InvalidAnswer
from distill_dagster.curation.filters.invalid_label import InvalidLabel
from distill_dagster.curation.filters.language import Language
from distill_dagster.curation.filters.low_agreement import LowAgreement
from distill_dagster.curation.filters.low_confidence import LowConfidence
from distill_dagster.curation.filters.low_judge import LowJudgeScore
from distill_dagster.curation.filters.no_answer import NoAnswer
from distill_dagster.curation.filters.other_label import TargetLabelMismatch
from distill_dagster.curation.filters.pii import Pii
from distill_dagster.curation.filters.prose import Prose
from distill_dagster.curation.filters.reasoning_words import ReasoningLength
from distill_dagster.curation.filters.refused import Refused
from distill_dagster.curation.filters.repetition import Repetition
from distill_dagster.curation.filters.secrets import Secrets
from distill_dagster.curation.filters.teachers_disagree import TeachersDisagree
from distill_dagster.curation.filters.too_long import TooLong
from distill_dagster.curation.filters.too_short import TooShort
from distill_dagster.curation.filters.toxicity import Toxicity
from distill_dagster.curation.filters.truncated import Truncated

BUILT_IN_FILTERS: tuple[type[Filter], ...] = (
    Truncated,
    Refused,
    NoAnswer,
    InvalidAnswer,
    InvalidLabel,
    TooShort,
    TooLong,
    ReasoningLength,
    AnswerLength,
    CompletionTokens,
    Boilerplate,
    Echo,
    Language,
    Repetition,
    Prose,
    AnswerFirst,
    Contradiction,
    Arithmetic,
    ReferenceMismatch,
    LowAgreement,
    LowConfidence,
    HighConfidence,
    TeachersDisagree,
    LowJudgeScore,
    TargetLabelMismatch,
    Secrets,
    Pii,
    Toxicity,
    Injection,
)
"""In the order of application. A row that several filters would drop gets the reason of the first. Filters of the user
come after them."""
STEP_REASONS = {
    "contaminated": "The text is that of a golden or dev row, nearly so, or one contains most of the other.",
    "duplicate": "The normalized text is that of another row, which is kept.",
    "near_duplicate": "Most of its word shingles are those of another row, which is kept.",
    "semantic_duplicate": "Its embedding is close to that of another row, which is kept.",
    "over_cap": "Rows that come before it fill a cap of `balance`.",
}
"""By drop reason, the steps after the filters. They compare several rows."""
