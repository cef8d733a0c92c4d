"""Read recorded completions from provider logs, stored completions, chat traces and files of a declared shape.

Logs of OpenAI and Anthropic are understood as they are. `teacher.replay` in task.yaml, or the options of an import, say
where the parts of any other record are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from distill_dagster.config import ReplaySpec
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.intake.row_files import get_by_path, read_records

RECORDED_FOLDER = "recorded"
"""The folder of recorded files, in the task folder or next to the prompts from the inbox."""


@dataclass(frozen=True)
class Recording:
    """One recorded completion.

    Attributes:
        prompt: the last user turn.
        conversation: all user turns, one per line, if there are several.
        created: seconds since 1970.
        tool_calls: each with `name`, and `arguments` as JSON text.
    """

    completion: str
    prompt: str | None = None
    conversation: str | None = None
    id: str | None = None
    reasoning: str | None = None
    model: str | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost_usd: float | None = None
    created: float | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def to_json(self) -> dict[str, Any]:
        """The record that an import writes. Reading it gives this recording again."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @cached_property
    def version(self) -> str:
        """Hash of the fields that become part of an answer, without the time."""
        excluded = ("prompt", "conversation", "id", "created")
        return hash_content({name: value for name, value in asdict(self).items() if name not in excluded})


def read_recordings(path: Path, replay: ReplaySpec) -> list[Recording]:
    """Read all recordings of a file or folder. The record of a failed call has none.

    Raises:
        InputError: records cannot be read. Each is named with its line.
    """
    if path.is_dir():
        return _read_uncached(path, replay)
    stat = path.lstat()  # the stages of all slices read it in one process: parse an unchanged file once
    return _read_cached(path, (stat.st_ino, stat.st_mtime_ns, stat.st_size), replay)


@lru_cache(maxsize=4)
def _read_cached(path: Path, stamp: tuple[int, int, int], replay: ReplaySpec) -> list[Recording]:
    return _read_uncached(path, replay)


def _read_uncached(path: Path, replay: ReplaySpec) -> list[Recording]:
    recordings: list[Recording] = []
    problems: list[Problem] = []
    for record in read_records(path):
        try:
            recordings += parse_recordings(record.value, replay)
        except _UnmappedError as error:
            problems.append(record.make_problem(str(error), error.remedy, error.field))
    if problems:
        raise InputError(problems)
    return recordings


def find_last_user_turn(value: Any) -> str | None:
    """The last user turn of a log or trace, or None."""
    record = {"messages": value} if isinstance(value, list) else _to_dict(value)
    messages = _find_messages(_unwrap_part(record, "request")) or _find_messages(record)
    turns = [_join_text(m.get("content")) for m in messages if m.get("role") == "user"]
    return turns[-1] if turns else None


class _UnmappedError(ValueError):
    """A part of a record was not found, with the field and the remedy of the problem."""

    def __init__(self, message: str, field: str, remedy: str = "") -> None:
        self.field = field
        option = "text" if field == "prompt" else field
        self.remedy = remedy or f"Name its place: `replay.{field}` in task.yaml, or --{option}-field of an import."
        super().__init__(message)


def parse_recordings(value: Any, replay: ReplaySpec) -> list[Recording]:
    """The completions in one record; several if the request asked for several.

    Raises:
        ValueError: the record has no completion, or neither a prompt nor an id.
    """
    record = {"messages": value} if isinstance(value, list) else value
    request, response = _unwrap_part(record, "request"), _unwrap_part(record, "response")
    messages = _find_messages(request) or _find_messages(record)
    choices = list(_find_choices(record, response, replay))
    if not choices and messages and messages[-1].get("role") == "assistant" and replay.completion is None:
        last, messages = messages[-1], messages[:-1]
        choices = [
            _RecordedChoice(_join_text(last.get("content")), _find_reasoning(last), None, _read_tool_calls(last))
        ]
    if not choices:
        if _is_failed(record, response):
            return []
        raise _UnmappedError("no completion was found.", "completion")
    turns = [_join_text(m.get("content")) for m in messages if m.get("role") == "user"]
    prompt = _read_mapped(record, replay.prompt, "prompt") if replay.prompt else None
    if prompt is None:
        plain = (request.get("prompt"), request.get("input"), record.get("prompt"))
        prompt = turns[-1] if turns else next((str(v) for v in plain if _is_text(v)), None)
    if prompt is not None and replay.prompt_pattern:
        prompt = _extract_prompt(prompt, replay.prompt_pattern)
    id_ = get_by_path(record, replay.id) if replay.id else record.get("custom_id") or record.get("id")
    if prompt is None and id_ is None:
        raise _UnmappedError("neither a prompt nor an id was found.", "prompt")
    usage = _to_dict(response.get("usage"))
    conversation = _to_string(record.get("conversation")) or ("\n".join(turns) if len(turns) > 1 else None)
    return [
        Recording(
            completion=choice.text,
            prompt=prompt,
            conversation=conversation,
            id=str(id_) if id_ is not None else None,
            reasoning=choice.reasoning or None,
            model=_to_string(get_by_path(record, replay.model) if replay.model else response.get("model")),
            finish_reason=choice.finish or _to_string(record.get("finish_reason")),
            prompt_tokens=_find_count(usage, "prompt_tokens", "input_tokens", record),
            # The usage of several choices is that of all together, not of one of them.
            completion_tokens=_find_count(usage, "completion_tokens", "output_tokens", record)
            if len(choices) == 1
            else None,
            cost_usd=_to_number(record.get("cost_usd")) if len(choices) == 1 else None,
            created=_to_number(response.get("created", response.get("created_at"))),
            tool_calls=choice.calls,
        )
        for choice in choices
    ]


@dataclass(frozen=True)
class _RecordedChoice:
    """One choice of a response."""

    text: str
    reasoning: str | None = None
    finish: str | None = None
    calls: list[dict[str, Any]] | None = None


def _find_choices(record: dict[str, Any], response: dict[str, Any], replay: ReplaySpec) -> Iterator[_RecordedChoice]:
    """The choices at the declared place, or in a known shape."""
    reasoning = _to_string(get_by_path(record, replay.reasoning)) if replay.reasoning else None
    if replay.completion:
        if (text := _read_mapped(record, replay.completion, "completion")) is not None:
            yield _RecordedChoice(text, reasoning)
        return
    for choice in response.get("choices") or []:  # chat and text completions
        if isinstance(choice, dict):
            message = _to_dict(choice.get("message"))
            text = _join_text(message.get("content") if message else choice.get("text"))
            refusal = None if text else _to_string(message.get("refusal"))
            finish = "refusal" if refusal else _to_string(choice.get("finish_reason"))
            yield _RecordedChoice(
                text or refusal or "", reasoning or _find_reasoning(message), finish, _read_tool_calls(message)
            )
    if response.get("choices"):
        return
    if isinstance(response.get("output"), list):  # OpenAI's Responses
        parts = [item for item in response["output"] if isinstance(item, dict)]
        text = "".join(_join_text(item.get("content")) for item in parts if item.get("type") == "message")
        thought = "".join(_join_text(item.get("summary")) for item in parts if item.get("type") == "reasoning")
        calls = [{"function": item} for item in parts if item.get("type") == "function_call"]
        yield _RecordedChoice(text, reasoning or thought, None, _read_tool_calls({"tool_calls": calls}))
        return
    if isinstance(response.get("content"), list):  # Anthropic's Messages
        reasons = {"end_turn": "stop", "max_tokens": "length", "refusal": "refusal"}
        finish = reasons.get(str(response.get("stop_reason")))
        tool_parts = [p for p in response["content"] if isinstance(p, dict) and p.get("type") == "tool_use"]
        calls = [{"function": {"name": p.get("name"), "arguments": p.get("input")}} for p in tool_parts]
        text = _join_text(response["content"])
        yield _RecordedChoice(
            text, reasoning or _find_reasoning(response), finish, _read_tool_calls({"tool_calls": calls})
        )
        return
    for name in ("completion", "output", "response"):
        if isinstance(record.get(name), str):
            yield _RecordedChoice(
                record[name], reasoning or _to_string(record.get("reasoning")), None, _read_tool_calls(record)
            )
            return


def _read_tool_calls(message: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The tool calls of a message: the name, and the arguments as JSON text."""
    named = []
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = _to_dict(_to_dict(call).get("function")) or _to_dict(call)
        arguments = function.get("arguments")
        text = arguments if isinstance(arguments, str) else to_canonical_json(arguments or {})
        if _is_text(function.get("name")):
            named.append({"name": str(function["name"]), "arguments": text or "{}"})
    return named or None


def _is_failed(record: dict[str, Any], response: dict[str, Any]) -> bool:
    return bool(record.get("error") or response.get("error") or response.get("choices") == [])


def _unwrap_part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The request or response of a log, without the envelope of a batch file, or else the record itself."""
    part = record.get(name)
    if name == "request" and part is None and isinstance(record.get("body"), dict):
        part = record["body"]
    if not isinstance(part, dict):
        return record
    return part["body"] if isinstance(part.get("body"), dict) else part


def _find_messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    for name in ("messages", "input"):
        messages = request.get(name)
        if isinstance(messages, dict):
            messages = messages.get("data")  # OpenAI's list of the messages of a stored completion
        if isinstance(messages, list):
            return [message for message in messages if isinstance(message, dict)]
    return []


def _join_text(content: Any) -> str:
    """The text of a message: the content itself, or its text parts."""
    if isinstance(content, list):
        parts = [p for p in content if isinstance(p, dict) and p.get("type") not in ("thinking", "tool_use")]
        return "".join(str(part["text"]) for part in parts if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def _find_reasoning(message: dict[str, Any]) -> str | None:
    for name in ("reasoning_content", "reasoning"):
        if _is_text(message.get(name)):
            return str(message[name])
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    thought = [str(p.get("thinking", "")) for p in parts if isinstance(p, dict) and p.get("type") == "thinking"]
    return "".join(thought) or None


def _read_mapped(record: dict[str, Any], path: str, field: str) -> str | None:
    value = get_by_path(record, path)
    if value is None:
        raise _UnmappedError(f"there is nothing at {path!r}.", field, f"Fix the path of the {field}, or the record.")
    if isinstance(value, str | list):
        return _join_text(value)
    raise _UnmappedError(f"the value at {path!r} is not a text.", field, f"Fix the path of the {field}.")


def _extract_prompt(text: str, pattern: str) -> str:
    import polars as pl

    # The regular expressions of Polars take linear time on any text.
    group = pl.Series([text], dtype=pl.String).str.extract(pattern, 1).item()
    return text if group is None else str(group)


def _to_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _to_string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _to_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _find_count(usage: dict[str, Any], name: str, other: str, record: dict[str, Any]) -> int | None:
    for count in (usage.get(name), usage.get(other), record.get(name)):
        if isinstance(count, int) and not isinstance(count, bool):
            return count
    return None
