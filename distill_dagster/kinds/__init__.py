"""Kinds of tasks: what an answer is, how it is read, when two are equal, and what a report measures.

One class per kind; a new one is a class here and its templates in `prompts/templates`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_dagster.kinds.base import WANTED_REFUSAL, Choice, InvalidAnswer, Kind, Question, is_refusal, written
from distill_dagster.kinds.extraction import Extraction
from distill_dagster.kinds.labels import Labelled
from distill_dagster.kinds.maths import Maths
from distill_dagster.kinds.qa import Qa
from distill_dagster.kinds.reading import Parsed, read_answer
from distill_dagster.kinds.texts import Generated, Reply, Summary
from distill_dagster.kinds.tools import ToolCalls

if TYPE_CHECKING:
    from distill_dagster.config import Task

__all__ = [
    "KINDS",
    "WANTED_REFUSAL",
    "Choice",
    "InvalidAnswer",
    "Kind",
    "Parsed",
    "Question",
    "is_refusal",
    "kind_of",
    "read_answer",
    "written",
]

KINDS: dict[str, type[Kind]] = {
    "classification": Labelled,
    "nli": Labelled,
    "extraction": Extraction,
    "qa": Qa,
    "math": Maths,
    "summarization": Summary,
    "conversation": Reply,
    "tool_call": ToolCalls,
    "generation": Generated,
}


def kind_of(task: Task) -> Kind:
    """The kind of a task, with its settings."""
    return KINDS[task.kind](task)
