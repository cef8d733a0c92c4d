"""Tool calls: an answer lists the task's tools to call, with their arguments. An empty list means that none fits."""

from __future__ import annotations

import json
import re
from typing import Any

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.json_schema import find_answer_problem
from distill_dagster.core.json_text import CutJsonError, decode_json, find_json
from distill_dagster.kinds.base import InvalidAnswerError, Kind, Question
from distill_dagster.kinds.extraction import simplify_value
from distill_dagster.kinds.similarity import compute_bag_f1
from distill_dagster.kinds.written_calls import find_written_calls, list_calls, strip_tool_name

_AFTER_ARGUMENTS = re.compile(r"(?:\s|<[|｜/][^<>{}]*>|```)*\Z")
"""Special tokens and tags that some servers leave after the arguments."""


class ToolCallKind(Kind):
    """Equal if the same tools are called with the same arguments, in any order."""

    answer_kind = "tool_calls"
    second_metric = "call_f1"

    def build_schema(self) -> dict[str, Any]:
        calls = [
            {
                "type": "object",
                "properties": {"name": {"type": "string", "const": tool.name}, "arguments": tool.parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
            for tool in self.task.tools
        ]
        return {"type": "array", "items": {"anyOf": calls}}

    def canonicalize(self, value: Any, question: Question) -> list[dict[str, Any]]:
        if isinstance(value, str):
            found = find_written_calls(value, self.task.tools)
            if found.calls is None:
                raise InvalidAnswerError(found.problem or "the answer contains no list of tool calls")
            listed = found.calls
        elif not isinstance(value, list | dict):
            raise InvalidAnswerError("the answer contains no list of tool calls")
        else:
            given = list_calls(value)
            if given is None:
                raise InvalidAnswerError("a tool call has no name")
            listed = given
        return [
            call
            for given in map(_expand, listed)
            for one in given
            for call in self._canonicalize_call(one["name"], one["arguments"])
        ]

    def _canonicalize_call(self, name: str, arguments: Any) -> list[dict[str, Any]]:
        """The call, or the calls whose arguments were run together."""
        name = strip_tool_name(name, self.task.tools)
        if name not in {tool.name for tool in self.task.tools}:
            raise InvalidAnswerError(f"{name[:60]!r} is not one of the task's tools")
        several = _read_arguments(name, arguments) if isinstance(arguments, str) else [arguments or {}]
        calls = [{"name": name, "arguments": self._check_arguments(name, one)} for one in several]
        if len(calls) > 1 and any(self._fits_another_tool(call) for call in calls):
            raise InvalidAnswerError(
                f"the arguments of several calls are run together after {name}, and they may be those of another tool"
            )
        return calls

    def _check_arguments(self, name: str, arguments: Any) -> dict[str, Any]:
        if not isinstance(arguments, dict):
            raise InvalidAnswerError(f"the arguments of {name} are not a JSON object")
        plain: dict[str, Any] = simplify_value(arguments)
        tool = next(tool for tool in self.task.tools if tool.name == name)
        if why := find_answer_problem(plain, tool.parameters):
            raise InvalidAnswerError(f"the arguments of {name} do not fit: {why}")
        return plain

    def _fits_another_tool(self, call: dict[str, Any]) -> bool:
        others = (tool for tool in self.task.tools if tool.name != call["name"])
        return any(find_answer_problem(call["arguments"], tool.parameters) is None for tool in others)

    def _are_equal(self, first: Any, second: Any) -> bool:
        return sorted(map(to_canonical_json, first)) == sorted(map(to_canonical_json, second))

    def score_second(self, answer: Any, reference: Any) -> float:
        return self._score_by(_compute_call_f1, answer, reference)


def _expand(call: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls in OpenAI's call of several tools at once; the call itself if it is another one."""
    if not call["name"].startswith("multi_tool_use"):
        return [call]
    arguments = call["arguments"]
    inner = list_calls(find_json(arguments) if isinstance(arguments, str) else arguments)
    if not inner:
        raise InvalidAnswerError("a call of several tools at once cannot be read")
    return inner


def _read_arguments(name: str, text: str) -> list[Any]:
    """Read arguments that were sent as text: one JSON object, or several that were run together.

    Raises:
        InvalidAnswerError: the text is something else, or it is cut.
    """
    text = text.strip()
    if text.startswith('"'):  # encoded twice
        try:
            text = str(json.loads(text)).strip()
        except ValueError:
            raise InvalidAnswerError(f"the arguments of {name} are not a JSON object") from None
    if text in ("", "null", "None"):
        return [{}]
    values: list[Any] = []
    place = 0
    while not (values and _AFTER_ARGUMENTS.match(text, place)):
        try:
            value, place = decode_json(text, place)
        except CutJsonError:
            raise InvalidAnswerError(f"the arguments of {name} are cut") from None
        except ValueError:
            raise InvalidAnswerError(f"the arguments of {name} are not a JSON object") from None
        values.append(value)
        place = len(text) - len(text[place:].lstrip(" \r\n\t,;"))
    return values


def _compute_call_f1(answer: list[Any], reference: list[Any]) -> float:
    return compute_bag_f1(map(to_canonical_json, answer), map(to_canonical_json, reference))
