"""Kinds of tasks: what an answer is, how it is read, when two are equal, and what a report measures.

One class per kind; a new one is a class here and its templates in `prompts/templates`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_dagster.kinds.base import InvalidAnswerError, Kind, MajorityVote, Question, format_with_reasoning
from distill_dagster.kinds.classification import LabelKind
from distill_dagster.kinds.extraction import ExtractionKind
from distill_dagster.kinds.free_text import ConversationKind, GenerationKind, SummaryKind
from distill_dagster.kinds.maths import MathKind
from distill_dagster.kinds.qa import QaKind
from distill_dagster.kinds.reading import ParsedAnswer, read_answer
from distill_dagster.kinds.refusals import WANTED_REFUSAL, is_refusal
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
    """The kind of a task, with its settings."""
    return KINDS[task.kind](task)
