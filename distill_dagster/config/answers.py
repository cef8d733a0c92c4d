"""Settings that define an answer: the kind of task, labels, tools, and how an answer is found in a text."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from distill_dagster.config.base import ConfigModel
from distill_dagster.core.json_schema import find_schema_problem
from distill_dagster.core.patterns import find_pattern_problem

TaskKind = Literal[
    "classification",
    "nli",
    "extraction",
    "qa",
    "math",
    "summarization",
    "conversation",
    "tool_call",
    "generation",
]
LABEL_KINDS = ("classification", "nli")
NLI_LABELS = (
    ("entailment", "if the premise is true, the hypothesis must be true."),
    ("neutral", "the premise neither makes the hypothesis certain nor rules it out."),
    ("contradiction", "if the premise is true, the hypothesis must be false."),
)
DEFAULT_INSTRUCTIONS = {
    "classification": "Sort the message into one of the categories.",
    "nli": "Say whether the hypothesis follows from the premise.",
    "extraction": "Extract the wanted fields from the text.",
    "qa": "Answer the question.",
    "math": "Solve the problem. The answer is one number, without a unit.",
    "summarization": "Summarize the text.",
    "conversation": "Write the next reply of the assistant.",
    "tool_call": "Choose which tools to call, and with what arguments.",
    "generation": "Rewrite the text.",
}


class LabelSpec(ConfigModel):
    """A category: its name as models see it, and a description of what belongs to it."""

    name: Annotated[str, Field(min_length=1, max_length=100)] = Field(
        description="the label as models see it and as rows write it"
    )
    description: Annotated[str, Field(min_length=1)] = Field(
        description="what belongs to the label, and what does not; the teacher reads it"
    )

    @field_validator("name")
    @classmethod
    def _check_spaces(cls, value: str) -> str:
        if value != value.strip() or "\n" in value:
            raise ValueError("a label must not start or end with a space, nor contain a line break")
        return value


class ToolSpec(ConfigModel):
    """A function that the answer of a `tool_call` task may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_-]{0,63}$")] = Field(
        description="the name of the function"
    )
    description: Annotated[str, Field(min_length=1)] = Field(description="what the function does; the teacher reads it")
    parameters: dict[str, Any] = Field(
        default={"type": "object", "properties": {}}, description="JSON schema of its arguments"
    )

    @field_validator("parameters")
    @classmethod
    def _check_schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        if problem := find_schema_problem(value):
            raise ValueError(problem)
        return value


class AnswerSpec(ConfigModel):
    """How an answer is found in the text of a model, and when two answers are equal."""

    pattern: str | None = Field(
        default=None, description="a regular expression with a group `answer`; its last match counts"
    )
    stop: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="text that follows the answer in a raw completion; the answer ends before it",
    )
    choices: bool = Field(default=False, description="kind qa: the answer is one of the lettered options of the prompt")
    exact: bool = Field(default=False, description="kind qa: two answers are equal only if every character is")
    tolerance: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=1e-6, description="kind math: largest difference of equal numbers, relative or absolute"
    )

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if problem := find_pattern_problem(value):
            raise ValueError(problem)
        if not re.search(r"\(\?P?<answer>", value):
            raise ValueError("the pattern needs a group `(?P<answer>…)`: the text that it matches is the answer")
        return value


def check_labels(labels: list[LabelSpec], kind: TaskKind) -> None:
    """Check that a kind has labels if it needs them, and none otherwise.

    Raises:
        ValueError: labels are missing, too few, duplicate or not allowed.
    """
    if kind not in LABEL_KINDS:
        if labels:
            raise ValueError(f"kind {kind} has no labels")
        return
    if not labels:
        raise PydanticCustomError("missing", "field required")
    if len(labels) < 2:
        raise PydanticCustomError("too_short", "list should have at least 2 items after validation, not 1")
    seen: set[str] = set()
    for label in labels:
        if label.name.casefold() in seen:
            raise ValueError(f"duplicate label {label.name!r}")
        seen.add(label.name.casefold())


def check_answer_options(answer: AnswerSpec, kind: TaskKind) -> None:
    """Check that options of kind qa are set for that kind only.

    Raises:
        ValueError: another kind sets one.
    """
    if (answer.choices or answer.exact) and kind != "qa":
        raise ValueError("answer.choices and answer.exact are for kind qa only")


def check_answer_schema(schema: dict[str, Any] | None, kind: TaskKind) -> None:
    """Check the JSON schema of an answer, which kind extraction needs and no other kind has.

    Raises:
        ValueError: it is missing, not allowed, or not a schema of an object.
    """
    if kind != "extraction":
        if schema is not None:
            raise ValueError("answer_schema is for kind extraction only")
        return
    if schema is None:
        raise PydanticCustomError("missing", "kind extraction needs the JSON schema of an answer")
    if schema.get("type") != "object":
        raise ValueError("the schema of an answer needs `type: object` at the top level")
    if problem := find_schema_problem(schema):
        raise ValueError(problem)


def check_tools(tools: list[ToolSpec], kind: TaskKind) -> None:
    """Check the tools, which kind tool_call needs and no other kind has.

    Raises:
        ValueError: they are missing, not allowed, or two share a name.
    """
    if kind != "tool_call":
        if tools:
            raise ValueError("tools are for kind tool_call only")
        return
    if not tools:
        raise PydanticCustomError("missing", "kind tool_call needs the tools that may be called")
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise ValueError("two tools share a name")
