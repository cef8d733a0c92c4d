"""Read the turns of a chat, whichever program wrote them: OpenAI, Anthropic, Gemini, LangChain, ShareGPT.

A chat is read into turns with one set of roles. What a turn means for a prompt or a completion is up to the caller.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from distill_dagster.core.hashing import to_canonical_json

_ROLES = {
    "system": ("system", "developer", "systemmessage"),
    "user": ("user", "human", "prompter", "humanmessage"),
    "assistant": (
        "assistant", "gpt", "ai", "model", "bot", "chatgpt", "bing", "bard", "claude", "aimessage", "aimessagechunk"
    ),
    "tool": ("tool", "function", "observation", "ipython", "function_response", "tool_response", "toolmessage"),
    "call": ("function_call", "tool_call"),
}  # fmt: skip
ROLES = {word: role for role, words in _ROLES.items() for word in words}
"""What programs call the roles, in lower case. `call` is ShareGPT's turn of an assistant that calls a tool."""
_TEXT_PARTS = ("text", "input_text", "output_text", "summary_text")
_SILENT_PARTS = (
    "thinking", "redacted_thinking", "reasoning", "tool_use", "tool_result", "server_tool_use", "function_call",
    "function_response", "refusal", "custom_tool_call",
)  # fmt: skip
"""Parts of a content that are neither its text nor an attachment."""
_ATTACHMENT_FIELDS = ("images", "image", "videos", "video", "audios", "audio")
_PICTURE_MARKS = ("<image>", "<video>", "<audio>", "data:image/")
_MEDIA_TYPE_FIELDS = ("type", "mime", "mimeType", "mime_type", "contentType", "content_type")
_CHAT_FIELDS = ("messages", "conversations", "conversation", "choices", "candidates", "contents", "chat_history")
MAX_NESTING = 100
"""How deep the lists and mappings in a cell may be nested."""


@dataclass(frozen=True)
class ChatTurn:
    """One turn.

    Attributes:
        role: `system`, `user`, `assistant` or `tool`.
        reasoning: what an assistant thought before the text.
        tool_calls: each with `name`, and `arguments` as JSON text.
        has_attachment: whether a picture, a sound or a file belongs to the turn.
    """

    role: str
    text: str
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    has_attachment: bool = False


def is_chat(value: Any) -> bool:
    """Whether a value is a list of turns: each with a known role and a content."""
    return isinstance(value, list) and bool(value) and all(_find_role(item) for item in value)


def read_chat(value: Any) -> list[ChatTurn]:
    """The turns of a list of messages. What is no turn is left out."""
    items = value if isinstance(value, list) else []
    return [read_turn(item, role) for item in items if (role := _find_role(item))]


def find_turns(record: dict[str, Any]) -> list[ChatTurn]:
    """The turns of a record: its messages, or the pairs of question and answer of its history."""
    for name in ("messages", "input", "conversations", "conversation", "contents", "chat_history", "prompt"):
        messages = parse_cell(record.get(name))
        if _find_role(messages):
            messages = [messages]
        elif isinstance(messages, dict):
            messages = messages.get("data", messages.get("messages"))  # OpenAI's list of a stored completion
        if is_chat(messages):
            turns = read_chat(messages)
            system = record.get("system", record.get("systemInstruction", record.get("system_instruction")))
            if system and turns[0].role != "system":
                text = system if isinstance(system, str) else join_text(_get_content(system) or system)
                turns.insert(0, ChatTurn("system", text))
            return [turn for turn in turns if turn.role != "system" or turn.text.strip()]
    return []


def read_turn(message: dict[str, Any], role: str | None = None) -> ChatTurn:
    """A message as a turn. Without a role it is the assistant's."""
    role = role or _find_role(message) or "assistant"
    inner = message.get("kwargs", message.get("data"))  # LangChain
    message = inner if isinstance(inner, dict) and "content" in inner else message
    content = _get_content(message)
    calls = read_calls(message)
    text = join_text(content)
    if role == "call":  # ShareGPT: the call is the text
        calls = read_calls({"tool_calls": _parse_json(text)}) or calls
        role, text = "assistant", "" if calls else text
    has_attachment = _has_attachment_part(content) or has_picture(text)
    has_attachment |= has_attachments(message) or any(message.get(name) for name in ("attachments", "files"))
    return ChatTurn(role, text, find_reasoning(message), calls, has_attachment)


def has_attachments(record: dict[str, Any]) -> bool:
    """Whether a record or message names pictures, sounds or files next to its text."""
    found = [value for name in _ATTACHMENT_FIELDS if (value := record.get(name))]
    files = record.get("attachments")
    media = [file for file in files if isinstance(file, dict)] if isinstance(files, list) else []
    types = [str(file.get(name, "")) for file in media for name in _MEDIA_TYPE_FIELDS]
    return any(isinstance(value, list | dict | bytes) for value in found) or any(
        type_.startswith(("image", "audio", "video")) for type_ in types
    )


def has_picture(text: str) -> bool:
    """Whether a text contains a picture, or a mark that stands for one."""
    return any(mark in text for mark in _PICTURE_MARKS)


def join_text(content: Any) -> str:
    """The text of a message: the content itself, or its text parts."""
    if isinstance(content, dict):
        content = [content]
    if isinstance(content, list):
        return "".join(_read_part(part) for part in content)
    return content if isinstance(content, str) else ""


def find_reasoning(message: dict[str, Any]) -> str | None:
    """What a model thought before its answer, in a field of its own or in parts of the content."""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name].strip():
            return str(message[name])
    content = _get_content(message)
    parts = [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    thought = [str(part.get("thinking", "")) for part in parts if part.get("type") == "thinking"]
    thought += [str(part["text"]) for part in parts if part.get("thought") is True and "text" in part]  # Gemini
    return "".join(thought) or None


def read_calls(message: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The tool calls of a message: the name, and the arguments as JSON text."""
    calls = message.get("tool_calls")
    calls = calls if isinstance(calls, list) else [calls]
    calls = [*calls, message.get("function_call")]  # OpenAI's form until 2023
    content = _get_content(message)
    for part in content if isinstance(content, list) else []:
        if isinstance(part, dict) and part.get("type") == "tool_use":  # Anthropic
            calls.append({"name": part.get("name"), "arguments": part.get("input")})
        elif isinstance(part, dict) and "functionCall" in part:  # Gemini
            calls.append(part["functionCall"])
    named = []
    for call in calls:
        if not isinstance(call, dict):
            continue
        function = call["function"] if isinstance(call.get("function"), dict) else call
        arguments = function.get("arguments", function.get("args"))
        text = arguments if isinstance(arguments, str) else to_canonical_json(arguments or {})
        if isinstance(function.get("name"), str) and function["name"].strip():
            named.append({"name": str(function["name"]), "arguments": text or "{}"})
    return named or None


def parse_cell(value: Any) -> Any:
    """The chat or provider's body that the text of a cell contains, or else the value itself.

    CSV files, and columns of other tables, contain them as JSON or in Python's notation.

    Raises:
        ValueError: the text begins as a chat and cannot be read, such as one that a spreadsheet cut.
    """
    if not isinstance(value, str) or not (text := value.strip()).startswith(("[", "{")):
        return value
    parsed = _parse_json(text)
    if parsed is None and text[1:].lstrip().startswith(("{'", "'")):
        parsed = _parse_python(text)
    if is_chat(parsed) or (isinstance(parsed, dict) and (_find_role(parsed) or _has_chat(parsed))):
        return parsed
    if parsed is None and _looks_like_chat(text):
        raise ValueError("begins as a list of messages and is not valid JSON")
    return value


def _parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _parse_python(text: str) -> Any:
    """A value in Python's notation, as pandas writes lists into CSV."""
    if max(text.count("["), text.count("{"), text.count("(")) > 100_000 or _measure_nesting(text) > MAX_NESTING:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _measure_nesting(text: str) -> int:
    depth = deepest = 0
    for character in text:
        if character in "[{(":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]})":
            depth -= 1
    return deepest


def _looks_like_chat(text: str) -> bool:
    start = "".join(text[:400].split()).replace("'", '"')
    if start.startswith(('{"messages":[', '{"choices":[', '{"conversations":[')):
        return True
    is_list = start.startswith(('[{"role":"', '[{"from":"', '[{"content":"'))
    return is_list and any(f'"{name}":' in start for name in ("role", "from"))


def _has_chat(value: dict[str, Any]) -> bool:
    return any(isinstance(value.get(name), list) and value[name] for name in _CHAT_FIELDS)


def _find_role(item: Any) -> str | None:
    """The role of a message; None if the value is no message."""
    if not isinstance(item, dict):
        return None
    name = item.get("role", item.get("from"))
    if name is None and isinstance(item.get("type"), str):
        name = item["id"][-1] if item["type"] == "constructor" and isinstance(item.get("id"), list) else item["type"]
    role = ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    fields = ("content", "value", "parts", "tool_calls", "function_call", "data", "kwargs")
    if role is None or not any(field in item for field in fields):
        return None
    return role


def _get_content(message: Any) -> Any:
    if not isinstance(message, dict):
        return None
    for name in ("content", "value", "parts"):
        if message.get(name) is not None:
            content = message[name]
            return content.get("parts", content) if isinstance(content, dict) else content
    return None


def _read_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or part.get("thought") is True:
        return ""
    kind, text = part.get("type", "text"), part.get("text", part.get("input_text"))
    if isinstance(text, dict):  # OpenAI's Assistants
        text = text.get("value")
    return str(text) if isinstance(text, str) and kind not in _SILENT_PARTS else ""


def _has_attachment_part(content: Any) -> bool:
    parts: Sequence[Any] = content if isinstance(content, list) else [content]
    return any(isinstance(part, dict) and _is_attachment(part) for part in parts)


def _is_attachment(part: dict[str, Any]) -> bool:
    kind = part.get("type")
    if isinstance(kind, str):
        return kind not in (*_TEXT_PARTS, *_SILENT_PARTS)
    return any(name in part for name in ("inlineData", "inline_data", "fileData", "file_data", "image_url", "image"))
