"""Read answers that are not labels, and infer from them the schema or the tools of a task."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from distill_dagster.config import TaskKind
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.json_schema import find_schema_problem
from distill_dagster.core.json_text import find_json
from distill_dagster.new_task.columns import is_missing

_CALCULATION = re.compile(r"<<[^<>]*>>")
_TOOL_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,63}")


class UnreadableAnswerError(ValueError):
    """A cell that has no answer of the kind. The message says why."""


def read_answer_cell(value: Any, kind: TaskKind) -> Any:
    """The answer in a cell as a JSON value, or None for a missing one.

    Raises:
        UnreadableAnswerError: there is a value, and it is no answer of the kind.
    """
    if kind in ("extraction", "tool_call"):
        return _read_json(value, kind)
    if kind == "qa":  # SQuAD: {"text": ["in Oslo", "Oslo"], "answer_start": [3, 6]}
        value = value.get("text") if isinstance(value, dict) else value
        value = next((item for item in value if not is_missing(item)), None) if isinstance(value, list) else value
    if is_missing(value):
        return None
    if isinstance(value, dict | list):
        raise UnreadableAnswerError("the answer is not a text")
    return value.strip() if isinstance(value, str) else value


def _read_json(value: Any, kind: TaskKind) -> Any:
    wanted = (list, dict) if kind == "tool_call" else (dict,)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    found = value
    if isinstance(value, str):
        try:
            found = json.loads(value)
        except ValueError:
            found = find_json(value)
    if not isinstance(found, wanted):
        expected = "a JSON list of tool calls" if kind == "tool_call" else "a JSON object"
        raise UnreadableAnswerError(f"the answer is not {expected}")
    if kind == "tool_call":
        return [_read_call(call) for call in (found if isinstance(found, list) else [found])]
    return found


def _read_call(call: Any) -> dict[str, Any]:
    call = call.get("function", call) if isinstance(call, dict) else {}
    arguments = call.get("arguments", call.get("parameters", {})) if isinstance(call, dict) else {}
    if isinstance(arguments, str):
        arguments = find_json(arguments)
    if not isinstance(call, dict) or not isinstance(call.get("name"), str) or not isinstance(arguments, dict):
        raise UnreadableAnswerError("a tool call needs a `name` and `arguments`")
    return {"name": call["name"], "arguments": arguments}


def build_object(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any] | None:
    """The object of several columns, or None if all of them are empty. An empty cell is null."""
    plain = [_read_number(value) if not is_missing(value) else None for value in values]
    return dict(zip(names, plain, strict=True)) if any(value is not None for value in plain) else None


def _read_number(value: Any) -> Any:
    """A cell of a CSV file that is a number, as a number. A leading zero means a code, such as a postcode."""
    if isinstance(value, str):
        value = value.strip()
        if re.fullmatch(r"-?(0|[1-9]\d{0,14})", value):
            return int(value)
        if re.fullmatch(r"-?(0|[1-9]\d{0,14})\.\d{1,12}", value):
            return float(value)
    return value


def split_reasoning(answer: Any) -> tuple[str | None, Any]:
    """The reasoning and the result of an answer such as GSM8K's: "6 * 7 = 42 apples. #### 42"."""
    if not isinstance(answer, str) or "####" not in answer:
        return None, answer
    reasoning, _, result = answer.rpartition("####")
    return _CALCULATION.sub("", reasoning).strip() or None, result.strip()


def infer_schema(values: Iterable[Any]) -> dict[str, Any]:
    """A JSON schema that all values fit. A field of an object is required if every object has it."""
    rest = [value for value in values if value is not None]
    objects = [value for value in rest if isinstance(value, dict)]
    if objects and len(objects) == len(rest):
        names = list(dict.fromkeys(name for value in objects for name in value))
        properties = {}
        for name in names:
            inner = [value[name] for value in objects if name in value]
            properties[name] = _infer_field(inner)
        required = [name for name in names if all(name in value for value in objects)]
        return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    lists = [value for value in rest if isinstance(value, list)]
    if lists and len(lists) == len(rest):
        items = [item for value in lists for item in value]
        return {"type": "array", "items": _infer_field(items)} if items else {"type": "array"}
    kinds = sorted({_name_type(value) for value in rest})
    kinds = [kind for kind in kinds if not (kind == "integer" and "number" in kinds)]
    return {"type": kinds[0]} if len(kinds) == 1 else ({"type": kinds} if kinds else {})


def _infer_field(values: Sequence[Any]) -> dict[str, Any]:
    schema = infer_schema(values)
    if not any(value is None for value in values) or "type" not in schema:
        return schema
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return schema | {"type": [*kinds, "null"]}


def _name_type(value: Any) -> str:
    names: tuple[tuple[type | tuple[type, ...], str], ...] = (
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "object")


def infer_tools(answers: Iterable[Any], offered: Iterable[Any]) -> list[dict[str, Any]]:
    """The tools of a task: those that records offer, and those that answers call.

    Args:
        answers: lists of calls, as `read_answer_cell` returns them.
        offered: definitions in records, in OpenAI's form or as plain objects with a name.
    """
    calls: dict[str, list[dict[str, Any]]] = {}
    known: dict[str, dict[str, Any]] = {}
    for definition in offered:
        tool = definition.get("function", definition) if isinstance(definition, Mapping) else {}
        if isinstance(tool, Mapping) and isinstance(tool.get("name"), str):
            known.setdefault(tool["name"], dict(tool))
    for answer in answers:
        for call in answer or ():
            calls.setdefault(call["name"], []).append(call["arguments"])
    tools = []
    for name in sorted({*known, *calls}):
        if not _TOOL_NAME.fullmatch(name):
            continue
        tool = known.get(name, {})
        description = tool.get("description")
        parameters = tool.get("parameters")
        if not isinstance(parameters, dict) or parameters.get("type") != "object" or find_schema_problem(parameters):
            parameters = infer_schema(calls.get(name, [])) if calls.get(name) else {"type": "object", "properties": {}}
        described = description if isinstance(description, str) and description.strip() else f"{name}."
        tools.append({"name": name, "description": described, "parameters": parameters})
    return tools


def render_answer(answer: Any) -> str:
    """An answer as text: JSON if it is not a text."""
    return answer if isinstance(answer, str) else to_canonical_json(answer)
