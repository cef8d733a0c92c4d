"""Kinds of tasks: what an answer is, how it is read, when two answers are equal, and what a report measures.

One file per kind. A new kind is a class here, an entry in `KINDS`, and its templates in `prompts/templates`. Asking a
teacher belongs to `teacher.asking`. Each kind also formats the texts that a student learns from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_dagster.kinds.base import InvalidAnswerError, Kind, MajorityVote, Question, format_with_reasoning
from distill_dagster.kinds.classification import LabelKind
from distill_dagster.kinds.conversation import ConversationKind
from distill_dagster.kinds.extraction import ExtractionKind
from distill_dagster.kinds.generation import GenerationKind
from distill_dagster.kinds.maths import MathKind
from distill_dagster.kinds.qa import QaKind
from distill_dagster.kinds.reading import ParsedAnswer, read_answer
from distill_dagster.kinds.refusals import WANTED_REFUSAL, is_refusal
from distill_dagster.kinds.summarization import SummaryKind
from distill_dagster.kinds.tool_call import ToolCallKind

if TYPE_CHECKING:
    from distill_dagster.config import Task

__all__ = [
    "KINDS",
    "WANTED_REFUSAL",
    "InvalidAnswerError",
    "Kind",
    "MajorityVote",
    "ParsedAnswer",
    "Question",
    "format_with_reasoning",
    "get_kind",
    "is_refusal",
    "read_answer",
]

KINDS: dict[str, type[Kind]] = {
    "classification": LabelKind,
    "nli": LabelKind,
    "extraction": ExtractionKind,
    "qa": QaKind,
    "math": MathKind,
    "summarization": SummaryKind,
    "conversation": ConversationKind,
    "tool_call": ToolCallKind,
    "generation": GenerationKind,
}


def get_kind(task: Task) -> Kind:
    """Return the kind of a task, with the task's settings."""
    return KINDS[task.kind](task)
