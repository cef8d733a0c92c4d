"""Tool calls: an answer lists the task's tools to call, with their arguments. An empty list means that none fits."""

from __future__ import annotations

from typing import Any

from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.json_schema import find_answer_problem
from distill_dagster.core.json_text import find_json
from distill_dagster.kinds.base import InvalidAnswerError, Kind, Question
from distill_dagster.kinds.extraction import simplify_value
from distill_dagster.kinds.similarity import compute_bag_f1


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
        found = find_json(value) if isinstance(value, str) else value
        calls = [found] if isinstance(found, dict) else found
        if not isinstance(calls, list):
            raise InvalidAnswerError("the answer contains no list of tool calls")
        return [self._canonicalize_call(call) for call in calls]

    def _canonicalize_call(self, call: Any) -> dict[str, Any]:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise InvalidAnswerError("a tool call has no name")
        name, arguments = call["name"], call.get("arguments", {})
        if isinstance(arguments, str):  # as providers send them
            arguments = find_json(arguments)
        tool = next((t for t in self.task.tools if t.name == name), None)
        if tool is None:
            raise InvalidAnswerError(f"{name[:60]!r} is not one of the task's tools")
        if not isinstance(arguments, dict):
            raise InvalidAnswerError(f"the arguments of {name} are not a JSON object")
        arguments = simplify_value(arguments)
        if why := find_answer_problem(arguments, tool.parameters):
            raise InvalidAnswerError(f"the arguments of {name} do not fit: {why}")
        return {"name": name, "arguments": arguments}

    def _are_equal(self, first: Any, second: Any) -> bool:
        return sorted(map(to_canonical_json, first)) == sorted(map(to_canonical_json, second))

    def score_second(self, answer: Any, reference: Any) -> float:
        return self._score_by(_compute_call_f1, answer, reference)


def _compute_call_f1(answer: list[Any], reference: list[Any]) -> float:
    return compute_bag_f1(map(to_canonical_json, answer), map(to_canonical_json, reference))
