"""Read the parts of a provider's body, whatever types they have. Only `UnreadableBodyError` is raised.

Providers, gateways and local servers vary OpenAI's protocol: texts in parts, arguments as objects, missing or null
fields, numbers as text. What is only decoration is left out if it has another type. What is the answer is read in all
known forms, or the body is unreadable.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from distill_dagster.core.json_text import replace_surrogates
from distill_dagster.teacher.providers.exchange import Position

MAX_COUNT = 10**9
"""More tokens than this are no token count. The ledger on PostgreSQL has 32 bits for the sum of two counts."""
MAX_DEPTH = 20
UNKNOWN_LOGPROB = -9999.0
"""Stands for a log-probability that is not known, as OpenAI sends it. The probability is 0 and adds nothing."""
_THINKING_PARTS = {"thinking", "reasoning", "reasoning_text", "reasoning.text", "reasoning.summary", "summary_text"}
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking", "reasoning_details", "thinking_blocks")
_TEXT_PARTS = {"text", "output_text", "input_text", None}
_CALL_PARTS = {"tool_use", "tool_call", "function_call", "function"}


class UnreadableBodyError(ValueError):
    """The body contains no answer in any known form. The message says what it contains instead."""


def describe_type(value: Any) -> str:
    """The JSON type of a value, for a message."""
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "an object")


def to_dict(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def to_text(value: Any) -> str | None:
    """The value if it is a text that is not empty, without unpaired surrogates, which cannot be stored."""
    return replace_surrogates(value) if isinstance(value, str) and value else None


def to_json_text(value: Any) -> str:
    """The JSON text of any value that JSON can contain, without unpaired surrogates."""
    try:
        return str(replace_surrogates(json.dumps(value, ensure_ascii=False)))
    except (ValueError, RecursionError):  # integers of thousands of digits, or objects a thousand levels deep
        return "null"


def read_number(value: Any) -> float | None:
    """A finite number, also if it is written as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def read_count(value: Any) -> int | None:
    """A believable number of tokens, also if it is written as text or as 12.0; None for anything else."""
    if type(value) is int:  # nearly always
        return value if 0 <= value <= MAX_COUNT else None
    number = read_number(value)
    return int(number) if number is not None and 0 <= number <= MAX_COUNT else None


def read_usage(body: dict[str, Any]) -> tuple[int | None, int | None, int | None]:
    """The tokens of the prompt, of the answer, and of the prompt from a cache. The total supplies a missing count."""
    usage = to_dict(body.get("usage"))
    prompt = _read_first_count(usage, "prompt_tokens", "input_tokens")
    answer = _read_first_count(usage, "completion_tokens", "output_tokens")
    total = read_count(usage.get("total_tokens"))
    if total is not None and answer is None and prompt is not None and prompt <= total:
        answer = total - prompt
    elif total is not None and prompt is None and answer is not None and answer <= total:
        prompt = total - answer
    details = to_dict(usage.get("prompt_tokens_details")) or to_dict(usage.get("input_tokens_details"))
    return prompt, answer, read_count(details.get("cached_tokens"))


def _read_first_count(usage: dict[str, Any], *names: str) -> int | None:
    return next((count for name in names if (count := read_count(usage.get(name))) is not None), None)


def _iterate_parts(content: Any, depth: int = 0) -> Iterator[dict[str, Any]]:
    """The parts of a content in order: objects with a type. A plain text is a text part."""
    if depth > MAX_DEPTH or content is None:
        return
    if isinstance(content, str):
        yield {"type": "text", "text": content}
    elif isinstance(content, dict):
        yield content
    elif isinstance(content, list):
        for part in content:
            yield from _iterate_parts(part, depth + 1)


def _join_part_texts(value: Any, depth: int = 0) -> str:
    """All text in a part: a text, a list of parts, or an object that holds either under one of the usual names."""
    if isinstance(value, str):
        return value
    if depth > MAX_DEPTH:
        return ""
    if isinstance(value, list):
        return "".join(_join_part_texts(part, depth + 1) for part in value)
    if isinstance(value, dict):
        names = ("text", "thinking", "reasoning", "summary", "content", "value")
        return next((text for name in names if (text := _join_part_texts(value.get(name), depth + 1))), "")
    return ""


def _get_part_type(part: dict[str, Any]) -> str | None:
    type_ = part.get("type")
    return type_.casefold() if isinstance(type_, str) else None


def _list_parts(message: dict[str, Any], types: set[str]) -> list[dict[str, Any]]:
    """The parts of a message's content that have one of these types. A plain text has none."""
    content = message.get("content")
    if not isinstance(content, list | dict):
        return []
    return [part for part in _iterate_parts(content) if _get_part_type(part) in types]


def read_content(content: Any, place: str) -> str:
    """The text of a message: the content itself, or its text parts. Pictures and other parts are left out.

    Raises:
        UnreadableBodyError: there is content, and none of it is text, thinking or a tool call.
    """
    if isinstance(content, str):  # nearly always
        return str(replace_surrogates(content))
    if content is None or content == []:
        return ""
    if not isinstance(content, list | dict):
        raise UnreadableBodyError(f"{place} is {describe_type(content)} instead of a text")
    parts = list(_iterate_parts(content))
    texts = [part for part in parts if _get_part_type(part) in _TEXT_PARTS and _has_text(part)]
    known = any(_get_part_type(part) in _THINKING_PARTS | _CALL_PARTS | {"refusal"} for part in parts)
    if not texts and not known:
        raise UnreadableBodyError(f"{place} is {describe_type(content)} without a text in it")
    return str(replace_surrogates("".join(_join_part_texts(part) for part in texts)))


def _has_text(part: dict[str, Any]) -> bool:
    return any(isinstance(part.get(name), str | list | dict) for name in ("text", "value", "content"))


def read_reasoning(message: dict[str, Any]) -> str | None:
    """The thinking of a model: a field of its own, or parts of the content."""
    for name in _REASONING_FIELDS:
        if name in message and (text := _join_part_texts(message[name])).strip():
            return to_text(text)
    thoughts = _list_parts(message, _THINKING_PARTS)
    return to_text("\n\n".join(text for part in thoughts if (text := _join_part_texts(part).strip())))


def read_refusal(message: dict[str, Any]) -> str | None:
    """The text of a refusal, if the provider has a field or a part of its own for it (OpenAI)."""
    fields = message.get("refusal") or to_dict(message.get("provider_specific_fields")).get("refusal")
    parts = _list_parts(message, {"refusal"})
    if text := _join_part_texts(fields):
        return None if _join_part_texts(message.get("content")) else to_text(text)
    return to_text("".join(_join_part_texts(part.get("refusal")) for part in parts))


def read_tool_calls(message: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The tool calls of a message, each with its name and with its arguments as JSON text.

    They stand in `tool_calls`, in the older `function_call`, or in parts of the content. A name that is no text is
    None: the kind reports it.
    """
    listed = message.get("tool_calls")
    calls = listed if isinstance(listed, list) else [listed]
    calls = [*calls, message.get("function_call")] if not any(calls) else calls
    calls += _list_parts(message, _CALL_PARTS)
    return [_read_call(call) for call in calls if call] or None


def _read_call(call: Any) -> dict[str, Any]:
    call = to_dict(call)
    function = to_dict(call.get("function")) or to_dict(call.get("custom")) or call
    arguments = next((function[name] for name in ("arguments", "input", "parameters") if function.get(name)), None)
    text = arguments if isinstance(arguments, str) else to_json_text({} if arguments is None else arguments)
    return {"name": to_text(function.get("name")), "arguments": str(replace_surrogates(text))}


def read_positions(logprobs: Any) -> list[Position]:
    """The log-probabilities in the form of chat (`content`), of llama.cpp, or of OpenAI's text API (`tokens`).

    A token without a probability is left out. Without that of the first chosen token, or without other tokens to
    compare it with, nothing is known of the distribution: the list is empty. It ends at a later place where the
    chosen token has none.
    """
    entries = logprobs if isinstance(logprobs, list) else to_dict(logprobs).get("content")
    if not isinstance(entries, list) or not entries:
        entries = _zip_text_logprobs(to_dict(logprobs))
    positions: list[Position] = []
    for entry in map(to_dict, entries):
        token, chosen = entry.get("token"), _read_logprob(entry)
        if not isinstance(token, str):
            break
        tops = entry.get("top_probs") or entry.get("top_logprobs")
        if isinstance(tops, dict):
            tops = [{"token": name, "logprob": value} for name, value in tops.items()]
        known = [
            (top["token"], value)
            for top in (tops if isinstance(tops, list) else [])
            if isinstance(top, dict) and isinstance(top.get("token"), str) and (value := _read_logprob(top)) is not None
        ]
        chosen = dict(known).get(token) if chosen is None else chosen
        if not positions and (chosen is None or not known):
            break
        others = [(replace_surrogates(name), value) for name, value in known if name != token]
        positions.append([(replace_surrogates(token), UNKNOWN_LOGPROB if chosen is None else chosen), *others])
        if chosen is None:
            break
    return positions


def _zip_text_logprobs(logprobs: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of the text API in the form of the chat API."""
    tokens, values, tops = (
        value if isinstance(value := logprobs.get(name), list) else []
        for name in ("tokens", "token_logprobs", "top_logprobs")
    )
    return [
        {
            "token": token,
            "logprob": value,
            "top_logprobs": top,
        }
        for token, value, top in zip(tokens, values, tops, strict=False)
    ]


def _read_logprob(entry: dict[str, Any]) -> float | None:
    """The natural log-probability of a token; None without a believable one. llama.cpp sends a probability."""
    value = entry.get("logprob")
    if type(value) is float and UNKNOWN_LOGPROB <= value <= 0.0:  # nearly always
        return value
    if value is None and "prob" in entry:
        probability = read_number(entry["prob"])
        # Finite for 0: single precision turns probabilities below 1e-45 into 0.
        return None if probability is None else math.log(min(max(probability, 1e-45), 1.0))
    number = read_number(value)
    return None if number is None else max(min(number, 0.0), UNKNOWN_LOGPROB)
