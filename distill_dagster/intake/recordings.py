"""Read recorded completions out of provider logs, traces and files of any declared shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from distill_dagster.config import ReplaySpec
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.hashing import canonical_json, content_hash
from distill_dagster.intake.row_files import lookup, read_records

FOLDER = "recorded"
"""Where recorded files lie: in the task folder, or beside the prompts from the inbox."""


@dataclass(frozen=True)
class Recording:
    """One recorded completion. `prompt` is the last user turn, `conversation` all of them where there are several."""

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

    def as_json(self) -> dict[str, Any]:
        """What an import writes: it is read back as it is."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @cached_property
    def version(self) -> str:
        """Hash of what an answer made of it holds, not of when it was received."""
        left_out = ("prompt", "conversation", "id", "created")
        return content_hash({name: value for name, value in asdict(self).items() if name not in left_out})


def read_recordings(path: Path, replay: ReplaySpec) -> list[Recording]:
    """All recordings of a file or folder. A record of a call that failed has none.

    Raises:
        InputError: records that cannot be mapped, each with its line.
    """
    if path.is_dir():
        return _read_recordings(path, replay)
    found = path.lstat()  # each slice's stage reads anew, in one process: what did not change is not parsed again
    return _unchanged(path, (found.st_ino, found.st_mtime_ns, found.st_size), replay)


@lru_cache(maxsize=4)
def _unchanged(path: Path, stamp: tuple[int, int, int], replay: ReplaySpec) -> list[Recording]:
    return _read_recordings(path, replay)


def _read_recordings(path: Path, replay: ReplaySpec) -> list[Recording]:
    out: list[Recording] = []
    problems: list[Problem] = []
    for record in read_records(path):
        try:
            out += recordings(record.value, replay)
        except _UnmappedError as error:
            problems.append(record.problem(str(error), error.remedy, error.field))
    if problems:
        raise InputError(problems)
    return out


def prompt_of(value: Any) -> str | None:
    """The last user turn of a log or trace; None where there are no messages."""
    record = {"messages": value} if isinstance(value, list) else _dict(value)
    messages = _messages(_part(record, "request")) or _messages(record)
    turns = [_text(m.get("content")) for m in messages if m.get("role") == "user"]
    return turns[-1] if turns else None


class _UnmappedError(ValueError):
    def __init__(self, message: str, field: str, remedy: str = "") -> None:
        self.field = field
        option = "text" if field == "prompt" else field
        self.remedy = remedy or f"Say where it is: `replay.{field}` in task.yaml, or --{option}-field of an import."
        super().__init__(message)


def recordings(value: Any, replay: ReplaySpec) -> list[Recording]:
    """The completions in one record; more than one where a request asked for several."""
    record = {"messages": value} if isinstance(value, list) else value
    request, response = _part(record, "request"), _part(record, "response")
    messages = _messages(request) or _messages(record)
    said = list(_said(record, response, replay))
    if not said and messages and messages[-1].get("role") == "assistant" and replay.completion is None:
        last, messages = messages[-1], messages[:-1]
        said = [_Said(_text(last.get("content")), _reasoning(last), None, _calls(last))]
    if not said:
        if _failed(record, response):
            return []
        raise _UnmappedError("no completion was found.", "completion")
    turns = [_text(m.get("content")) for m in messages if m.get("role") == "user"]
    prompt = _mapped(record, replay.prompt, "prompt") if replay.prompt else None
    if prompt is None:
        plain = (request.get("prompt"), request.get("input"), record.get("prompt"))
        prompt = turns[-1] if turns else next((str(v) for v in plain if _is(v)), None)
    if prompt is not None and replay.prompt_pattern:
        prompt = _inner(prompt, replay.prompt_pattern)
    id_ = lookup(record, replay.id) if replay.id else record.get("custom_id") or record.get("id")
    if prompt is None and id_ is None:
        raise _UnmappedError("neither a prompt nor an id was found.", "prompt")
    usage = _dict(response.get("usage"))
    long = _string(record.get("conversation")) or ("\n".join(turns) if len(turns) > 1 else None)
    return [
        Recording(
            completion=one.text,
            prompt=prompt,
            conversation=long,
            id=str(id_) if id_ is not None else None,
            reasoning=one.reasoning or None,
            model=_string(lookup(record, replay.model) if replay.model else response.get("model")),
            finish_reason=one.finish or _string(record.get("finish_reason")),
            prompt_tokens=_count(usage, "prompt_tokens", "input_tokens", record),
            # The usage of several choices is that of all; none of them alone.
            completion_tokens=_count(usage, "completion_tokens", "output_tokens", record) if len(said) == 1 else None,
            cost_usd=_number(record.get("cost_usd")) if len(said) == 1 else None,
            created=_number(response.get("created", response.get("created_at"))),
            tool_calls=one.calls,
        )
        for one in said
    ]


@dataclass(frozen=True)
class _Said:
    """What one choice of a response says."""

    text: str
    reasoning: str | None = None
    finish: str | None = None
    calls: list[dict[str, Any]] | None = None


def _said(record: dict[str, Any], response: dict[str, Any], replay: ReplaySpec) -> Iterator[_Said]:
    """Where the declaration or a known shape says that the completion is."""
    reasoning = _string(lookup(record, replay.reasoning)) if replay.reasoning else None
    if replay.completion:
        if (found := _mapped(record, replay.completion, "completion")) is not None:
            yield _Said(found, reasoning)
        return
    for choice in response.get("choices") or []:  # chat and text completions
        if isinstance(choice, dict):
            message = _dict(choice.get("message"))
            text = _text(message.get("content") if message else choice.get("text"))
            declined = None if text else _string(message.get("refusal"))
            finish = "refusal" if declined else _string(choice.get("finish_reason"))
            yield _Said(text or declined or "", reasoning or _reasoning(message), finish, _calls(message))
    if response.get("choices"):
        return
    if isinstance(response.get("output"), list):  # OpenAI's Responses
        parts = [item for item in response["output"] if isinstance(item, dict)]
        text = "".join(_text(item.get("content")) for item in parts if item.get("type") == "message")
        thought = "".join(_text(item.get("summary")) for item in parts if item.get("type") == "reasoning")
        calls = [{"function": item} for item in parts if item.get("type") == "function_call"]
        yield _Said(text, reasoning or thought, None, _calls({"tool_calls": calls}))
        return
    if isinstance(response.get("content"), list):  # Anthropic's Messages
        reasons = {"end_turn": "stop", "max_tokens": "length", "refusal": "refusal"}
        finish = reasons.get(str(response.get("stop_reason")))
        used = [p for p in response["content"] if isinstance(p, dict) and p.get("type") == "tool_use"]
        calls = [{"function": {"name": p.get("name"), "arguments": p.get("input")}} for p in used]
        text = _text(response["content"])
        yield _Said(text, reasoning or _reasoning(response), finish, _calls({"tool_calls": calls}))
        return
    for name in ("completion", "output", "response"):
        if isinstance(record.get(name), str):
            yield _Said(record[name], reasoning or _string(record.get("reasoning")), None, _calls(record))
            return


def _calls(message: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The tool calls of a message by name and arguments, these as JSON text."""
    out = []
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = _dict(_dict(call).get("function")) or _dict(call)
        arguments = function.get("arguments")
        said = arguments if isinstance(arguments, str) else canonical_json(arguments or {})
        if _is(function.get("name")):
            out.append({"name": str(function["name"]), "arguments": said or "{}"})
    return out or None


def _failed(record: dict[str, Any], response: dict[str, Any]) -> bool:
    return bool(record.get("error") or response.get("error") or response.get("choices") == [])


def _part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The request or response of a log, out of the envelope of a batch file; else the record itself."""
    part = record.get(name)
    if name == "request" and part is None and isinstance(record.get("body"), dict):
        part = record["body"]
    if not isinstance(part, dict):
        return record
    return part["body"] if isinstance(part.get("body"), dict) else part


def _messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    for name in ("messages", "input"):
        found = request.get(name)
        if isinstance(found, dict):
            found = found.get("data")  # OpenAI's list of a stored completion's messages
        if isinstance(found, list):
            return [m for m in found if isinstance(m, dict)]
    return []


def _text(content: Any) -> str:
    """Plain, or in parts of which those of text count."""
    if isinstance(content, list):
        parts = [p for p in content if isinstance(p, dict) and p.get("type") not in ("thinking", "tool_use")]
        return "".join(str(part["text"]) for part in parts if isinstance(part.get("text"), str))
    return content if isinstance(content, str) else ""


def _reasoning(message: dict[str, Any]) -> str | None:
    for name in ("reasoning_content", "reasoning"):
        if _is(message.get(name)):
            return str(message[name])
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    thought = [str(p.get("thinking", "")) for p in parts if isinstance(p, dict) and p.get("type") == "thinking"]
    return "".join(thought) or None


def _mapped(record: dict[str, Any], path: str, field: str) -> str | None:
    found = lookup(record, path)
    if found is None:
        raise _UnmappedError(f"there is nothing at {path!r}.", field, f"Mend the path of the {field}, or the record.")
    if isinstance(found, str | list):
        return _text(found)
    raise _UnmappedError(f"what stands at {path!r} is no text.", field, f"Mend the path of the {field}.")


def _inner(text: str, pattern: str) -> str:
    import polars as pl

    # The engine of Polars takes linear time on any text; the first group, or all that was found.
    found = pl.Series([text], dtype=pl.String).str.extract(pattern, 1).item()
    return text if found is None else str(found)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _is(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _count(usage: dict[str, Any], name: str, other: str, record: dict[str, Any]) -> int | None:
    for found in (usage.get(name), usage.get(other), record.get(name)):
        if isinstance(found, int) and not isinstance(found, bool):
            return found
    return None
