"""What an answer is: the kinds of task, labels, tools, and how an answer is found in a text."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from distill_dagster.config.base import ConfigModel
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
    """A category: its name as the models see it, and what belongs to it and what does not."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    description: Annotated[str, Field(min_length=1)]

    @field_validator("name")
    @classmethod
    def _trimmed(cls, value: str) -> str:
        if value != value.strip() or "\n" in value:
            raise ValueError("a label has no space at its ends and no line break")
        return value


class ToolSpec(ConfigModel):
    """A function that the answer of a `tool_call` task may call."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z][a-zA-Z0-9_-]{0,63}$")]
    description: Annotated[str, Field(min_length=1)]
    parameters: dict[str, Any] = Field(
        default={"type": "object", "properties": {}}, description="JSON schema of its arguments"
    )

    @field_validator("parameters")
    @classmethod
    def _schema(cls, value: dict[str, Any]) -> dict[str, Any]:
        from distill_dagster.core.json_schema import find_schema_problem

        if why := find_schema_problem(value):
            raise ValueError(why)
        return value


class AnswerSpec(ConfigModel):
    """How an answer is found in what a model wrote, and when two are equal."""

    pattern: str | None = Field(
        default=None, description="a regular expression with a group `answer`; its last match counts"
    )
    stop: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="what a raw completion runs on with: the text before it counts"
    )
    choices: bool = Field(default=False, description="kind qa: the answer is one of the lettered options of the prompt")
    exact: bool = Field(default=False, description="kind qa: answers are equal only where every character is")
    tolerance: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=1e-6, description="kind math: numbers are equal within this, relative or absolute"
    )

    @field_validator("pattern")
    @classmethod
    def _named_group(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if why := find_pattern_problem(value):
            raise ValueError(why)
        if not re.search(r"\(\?P?<answer>", value):
            raise ValueError("a group `(?P<answer>…)` is wanted: what it holds is the answer")
        return value


def fill_default_labels(value: Any, kind: str | None) -> Any:
    """The labels as written; kind nli has labels of its own."""

    if value == [] and kind == "nli":
        return [{"name": name, "description": description} for name, description in NLI_LABELS]
    return value


def check_labels(labels: list[LabelSpec], kind: str | None) -> list[LabelSpec]:
    """Labels as the kind wants them; `kind` is None where the task's is malformed, here and below.

    Raises:
        ValueError: they are missing or too few, one stands twice, or the kind has none.
    """
    if kind is not None and kind not in LABEL_KINDS and labels:
        raise ValueError(f"kind {kind} has no labels")
    if kind in LABEL_KINDS and not labels:
        raise PydanticCustomError("missing", "field required")
    if kind in LABEL_KINDS and len(labels) < 2:
        raise PydanticCustomError("too_short", "list should have at least 2 items after validation, not 1")
    seen: set[str] = set()
    for label in labels:
        if label.name.casefold() in seen:
            raise ValueError(f"label {label.name!r} stands twice")
        seen.add(label.name.casefold())
    return labels


def check_answer_schema(schema: dict[str, Any] | None, kind: str | None) -> dict[str, Any] | None:
    """The JSON schema of an answer, which kind extraction has and no other.

    Raises:
        ValueError: it is missing, not wanted, or no schema of an object.
    """
    from distill_dagster.core.json_schema import find_schema_problem

    wanted = kind == "extraction"
    if schema is None:
        if wanted:
            raise PydanticCustomError("missing", "kind extraction wants the JSON schema of an answer")
        return None
    if not wanted:
        raise ValueError("answer_schema is for kind extraction alone")
    if schema.get("type") != "object":
        raise ValueError("the schema of an answer begins with `type: object`")
    if why := find_schema_problem(schema):
        raise ValueError(why)
    return schema


def check_tools(tools: list[ToolSpec], kind: str | None) -> list[ToolSpec]:
    """Tools, which kind tool_call has and no other.

    Raises:
        ValueError: they are missing or not wanted, or one stands twice.
    """
    wanted = kind == "tool_call"
    if wanted and not tools:
        raise PydanticCustomError("missing", "kind tool_call wants the tools that may be called")
    if tools and not wanted:
        raise ValueError("tools are for kind tool_call alone")
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise ValueError("a tool's name stands twice")
    return tools


NLI_LABELS = (
    ("entailment", "if the premise is true, the hypothesis must be true."),
    ("neutral", "the premise neither makes the hypothesis certain nor rules it out."),
    ("contradiction", "if the premise is true, the hypothesis must be false."),
)
