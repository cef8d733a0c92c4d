"""Find tool calls that a model wrote into its text, where the server's parser did not take them out of it.

The forms are those of the models' chat templates and of the tool parsers of vLLM and SGLang.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from distill_dagster.config import ToolSpec
from distill_dagster.core.json_text import BrokenJsonError, CutJsonError, decode_json, read_json

CUT_CALL = "a tool call in the text is cut"
BROKEN_CALL = "a tool call in the text cannot be read"
ARGUMENT_NAMES = ("arguments", "parameters", "args", "kwargs", "input", "action_input", "tool_input", "params")
NAME_NAMES = ("name", "recipient_name", "tool_name", "tool", "function_name", "action", "function")
LIST_NAMES = ("tool_calls", "tool_uses", "answer", "calls", "function_calls", "function_call", "tool_call", "actions")

_MARK = re.compile(
    r"</?tool_?calls?>|</?tools>|</?function_?calls?>|</?function[= ]|</?(?:\w+:)?invoke\b|</?\w+:tool_call"
    r"|\[TOOL_?CALLS?\]|\[/?TOOL_REQUEST\]|<\|/?tool_?calls?\w*\|>|<\|python_tag\|>|\bfunctools\[|<｜tool▁|<\|START_ACTION\|>"
    r"|<\|channel\|>|\bto=functions\.|<start_function_call>|<\|tool_call>|```tool_(?:code|calls?)|DSML"
    r"|^Action Input:",
    re.IGNORECASE | re.ASCII | re.MULTILINE,
)
"""What only a tool call is marked with. A text with one of them that holds no readable call is no answer."""
_OPENING = re.compile(r"<tool_call>|<\|tool_call_begin\|>|<｜tool▁call▁begin｜>", re.IGNORECASE | re.ASCII)
"""A mark that each call has for itself."""
_CLOSED = re.compile(
    r"(?:</tool_calls>|</function_?calls>|<｜tool▁calls▁end｜>|<\|tool_calls_section_end\|>|<\|END_ACTION\|>"
    r"|<\|tool_call_end\|>\]?|</minimax:tool_call>|<\|call\|>)\s*\Z",
    re.IGNORECASE | re.ASCII,
)
"""The end of all calls."""
_TOOL = r"(?P<tool>[\w.:-]+?)"
_BEFORE_JSON = tuple(
    re.compile(pattern + r"(?=\{)", re.ASCII | re.MULTILINE)
    for pattern in (
        rf"\[TOOL_CALLS\]\s?{_TOOL}(?:\[CALL_ID\][\w-]*)?(?:\[ARGS\])?\s*",  # Mistral
        rf"<｜tool▁call▁begin｜>(?:function<｜tool▁sep｜>)?{_TOOL}(?:<｜tool▁sep｜>)?\s*(?:```\w*\s*)?",  # DeepSeek
        rf"<\|tool_call_begin\|>\s*{_TOOL}\s*<\|tool_call_argument_begin\|>\s*",  # Kimi
        rf"<function=[\"']?{_TOOL}[\"']?>\s*",  # Llama
        rf"<(?:function|(?:\w+:|｜DSML｜)?invoke) name=[\"']{_TOOL}[\"']>\s*",
        rf"\bto=(?:functions\.)?{_TOOL}(?:\s[^{{]{{0,60}}|<[^{{]{{0,60}})",  # gpt-oss
        rf"(?:<\|tool_call>|<start_function_call>)\s*call:{_TOOL}\s*",  # Gemma
        rf"^Action:[ \t]*{_TOOL}[ \t]*\n\s*Action Input:\s*",  # ReAct
        rf"<tool_call>\s*{_TOOL}\s*",
    )
)
_WITH_PARAMETERS = re.compile(
    r"<function=[\"']?(?P<a>[\w.:-]+)[\"']?>(?P<a_body>.*?)(?:</function>|(?=<function=)|(?P<a_cut>\Z))"  # Qwen3-Coder
    r"|<(?:\w+:|｜DSML｜)?invoke name=[\"'](?P<b>[\w.:-]+)[\"']>(?P<b_body>.*?)"  # MiniMax, Anthropic, DeepSeek
    r"(?:</(?:\w+:|｜DSML｜)?invoke>|(?P<b_cut>\Z))"
    r"|<tool_call>\s*(?P<c>[\w.:-]+)\s*(?=<arg_key>|</tool_call>)(?P<c_body>.*?)(?:</tool_call>|(?P<c_cut>\Z))",  # GLM
    re.DOTALL | re.ASCII,
)
_PARAMETER = re.compile(
    r"<parameter=[\"']?(?P<a>[\w.-]+)[\"']?>(?P<a_value>.*?)(?:</parameter>|(?=<parameter=)|\Z)"
    r"|<(?:\w+:|｜DSML｜)?parameter name=[\"'](?P<b>[\w.-]+)[\"'][^>]*>(?P<b_value>.*?)</(?:\w+:|｜DSML｜)?parameter>"
    r"|<arg_key>\s*(?P<c>[\w.-]+?)\s*</arg_key>\s*<arg_value>(?P<c_value>.*?)</arg_value>",
    re.DOTALL | re.ASCII,
)
_PYTHON_MARKS = re.compile(
    r"```\w*|<\|/?(?:tool_call_start|tool_call_end|python_tag|python_start|python_end|eom|eot)\w*\|>|</?\w+>"
    r"|\bdefault_api[.:]|\bfunctions[.:]",
    re.ASCII,
)


@dataclass(frozen=True)
class WrittenCalls:
    """The tool calls in a text.

    `calls` have a `name` and `arguments`, as written; None if the text shows no sign of a call. An empty list means
    that the model wrote an empty list. `problem` says why a call cannot be read. `is_closed`: nothing can follow the
    calls, so a text that is cut after them is complete.
    """

    calls: list[dict[str, Any]] | None = None
    problem: str | None = None
    is_closed: bool = False
    is_cut: bool = False


def find_written_calls(text: str, tools: Sequence[ToolSpec]) -> WrittenCalls:
    """Find all tool calls in a text. If one of several calls cannot be read, there is a problem and no call."""
    text = text.replace('<|"|>', '"')  # Gemma's quotation marks
    try:
        calls, is_list = _find_calls(text, tools)
    except CutJsonError:
        return WrittenCalls(problem=CUT_CALL, is_cut=True)
    except ValueError:
        return WrittenCalls(problem=BROKEN_CALL)
    if calls is None:
        shows_call = _MARK.search(text) or _has_call_sign(text, tools) or _is_other_json(text)
        return WrittenCalls(problem=BROKEN_CALL if shows_call else None)
    if len(_OPENING.findall(text)) > len(calls):
        return WrittenCalls(problem=BROKEN_CALL)
    return WrittenCalls(calls, is_closed=is_list or bool(_CLOSED.search(text)))


def list_calls(value: Any) -> list[dict[str, Any]] | None:
    """The calls in a JSON value, in any of the usual forms, with `name` and `arguments`; None if it is no call."""
    if isinstance(value, list):
        listed = [list_calls(item) for item in value]
        return None if None in listed else [call for calls in listed for call in calls or []]
    if not isinstance(value, dict):
        return None
    if (inner := value.get("function")) and isinstance(inner, dict):  # as OpenAI writes them
        return list_calls(inner)
    if "description" in value and "parameters" in value:  # the declaration of a tool
        return None
    for name in NAME_NAMES:
        if isinstance(value.get(name), str):
            given: Any = next((value[key] for key in ARGUMENT_NAMES if key in value), {})
            return [{"name": value[name], "arguments": given}]
    for name in LIST_NAMES:
        if isinstance(value.get(name), list | dict):
            return list_calls(value[name])
    return None


def has_marks(text: str) -> bool:
    """Whether a text has what only a tool call is marked with."""
    return bool(_MARK.search(text))


def strip_tool_name(name: str, tools: Sequence[ToolSpec]) -> str:
    """The name of one of the tools, of "functions.find_order", "find_order:0" or "find_order<|channel|>json"."""
    known = {tool.name for tool in tools}
    if name in known:
        return name
    plain = re.split(r"<\||\s", name.strip())[0]
    plain = re.sub(r"^(?:functions?|default_api|tools?|multi_tool_use)[.:]", "", plain)
    plain = re.sub(r":\d+$", "", plain)
    return plain if plain in known else name


def _find_calls(text: str, tools: Sequence[ToolSpec]) -> tuple[list[dict[str, Any]] | None, bool]:
    """The calls in a text, and whether they are one whole list; None if there is none.

    Raises:
        CutJsonError: a call is cut.
        ValueError: a call cannot be read.
    """
    if named := list(_find_parameter_calls(text, tools)) or list(_find_named_calls(text, tools)):
        return named, False
    if python := _find_python_calls(text, tools):
        return python, text.strip().startswith("[")
    found = read_json(text)
    names = {tool.name for tool in tools}
    parts = [(value, listed) for value in found.values if (listed := _list_calls_of_tools(value, names)) is not None]
    if not parts and not _looks_like_call(text, names):
        return None, False
    if found.is_cut:
        raise CutJsonError(CUT_CALL)
    if found.is_broken and _looks_like_call(text, names):
        raise ValueError(BROKEN_CALL)
    if not parts:
        return None, False
    calls = [call for _, listed in parts for call in listed]
    is_list = len(parts) == 1 and (isinstance(parts[0][0], list) or any(name in parts[0][0] for name in LIST_NAMES))
    return calls, is_list


def _list_calls_of_tools(value: Any, names: set[str]) -> list[dict[str, Any]] | None:
    """The calls in a JSON value, or None for other data, such as an object that has a name but no arguments."""
    is_by_name = isinstance(value, dict) and value and set(value) <= names  # {"find_order": {"number": 7}}
    if is_by_name and all(isinstance(arguments, dict) for arguments in value.values()):
        return [{"name": name, "arguments": arguments} for name, arguments in value.items()]
    listed = list_calls(value)
    if listed and not any(call["name"] in names or call["arguments"] for call in listed):
        return None
    if (
        listed == []
        and isinstance(value, dict)
        and not any(name in value for name in ("tool_calls", "answer", "calls"))
    ):
        return None
    return listed


def _looks_like_call(text: str, names: set[str]) -> bool:
    """Whether JSON in a text is about one of the tools."""
    return bool(_MARK.search(text)) or any(
        re.search(rf"[\"'“]{re.escape(name)}[\"'”]", text) is not None for name in names
    )


def _has_call_sign(text: str, tools: Sequence[ToolSpec]) -> bool:
    """Whether a text has a tool's name with brackets behind it: "find_order(number=7)", "find_order: {…}"."""
    return any(re.search(rf"(?<!\w){re.escape(tool.name)}[`*:]*\s*(?:```\w*\s*)?[({{]", text) for tool in tools)


def _is_other_json(text: str) -> bool:
    """Whether a text is JSON alone, so that it is no reply in words."""
    found = read_json(text)
    return text.strip()[:1] in ("{", "[", "`") and text.strip()[-1:] in ("}", "]", "`") and bool(found.values)


def _find_named_calls(text: str, tools: Sequence[ToolSpec]) -> Iterator[dict[str, Any]]:
    """Yield the calls whose name comes before the JSON of their arguments."""
    names = "|".join(re.escape(tool.name) for tool in tools)
    alone = re.compile(rf"^[ \t*`]*(?P<tool>{names})[ \t*`:]*\s*(?:```\w*\s*)?(?=\{{)", re.MULTILINE)  # ChatGLM
    for pattern in (*_BEFORE_JSON, alone):
        found = list(pattern.finditer(text))
        for call in found:
            try:
                arguments, _ = decode_json(text, call.end())
            except CutJsonError:
                raise
            except BrokenJsonError as error:
                raise ValueError(BROKEN_CALL) from error
            yield {"name": call["tool"], "arguments": arguments}
        if found:
            return


def _find_parameter_calls(text: str, tools: Sequence[ToolSpec]) -> Iterator[dict[str, Any]]:
    """Yield the calls whose arguments are elements of their own."""
    for call in _WITH_PARAMETERS.finditer(text):
        form = next(name for name in ("a", "b", "c") if call[name])
        body = call[f"{form}_body"]
        if body.lstrip().startswith("{"):
            return
        if call[f"{form}_cut"] is not None:
            raise CutJsonError(CUT_CALL)
        arguments = {}
        for parameter in _PARAMETER.finditer(body):
            key = next(name for name in ("a", "b", "c") if parameter[name])
            arguments[parameter[key]] = parameter[f"{key}_value"]
        if not arguments and body.strip():
            raise ValueError(BROKEN_CALL)
        yield {"name": call[form], "arguments": _read_values(strip_tool_name(call[form], tools), arguments, tools)}


def _read_values(name: str, arguments: dict[str, str], tools: Sequence[ToolSpec]) -> dict[str, Any]:
    """Arguments that were written as text, with the types that the tool's schema names."""
    schema = next((tool.parameters for tool in tools if tool.name == name), {}).get("properties", {})
    values: dict[str, Any] = {}
    for key, text in arguments.items():
        part = schema.get(key)
        types = part.get("type") if isinstance(part, dict) else None
        values[key] = text.strip("\n")
        if types == "string":
            continue
        try:
            values[key] = json.loads(text.strip())
        except ValueError:
            lowered = text.strip().casefold()
            values[key] = {"true": True, "false": False, "none": None}.get(lowered, values[key])
    return values


def _find_python_calls(text: str, tools: Sequence[ToolSpec]) -> list[dict[str, Any]] | None:
    """The calls of a text that is Python and nothing else: `[find_order(number=7)]`."""
    if not _has_call_sign(text, tools):
        return None
    plain = _PYTHON_MARKS.sub(" ", text).strip().strip(";")
    if len(plain) > 10_000:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes and numbers
            body = ast.parse(plain, mode="exec").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    calls: list[dict[str, Any]] = []
    for statement in body:
        if not isinstance(statement, ast.Expr):
            return None
        value = statement.value
        for node in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and node.args:
                node = node.args[0]  # Gemini's code
            call = _read_python_call(node)
            if call is None:
                return None
            calls.append(call)
    return calls


def _read_python_call(node: ast.expr) -> dict[str, Any] | None:
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name):
        return None
    try:
        arguments = {word.arg: ast.literal_eval(word.value) for word in node.keywords if word.arg}
    except (ValueError, RecursionError, MemoryError):
        return None
    return {"name": node.func.id, "arguments": arguments} if len(arguments) == len(node.keywords) else None
