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
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.intake.row_files import get_by_path, read_records

RECORDED_FOLDER = "recorded"
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
        return hash_content({name: value for name, value in asdict(self).items() if name not in left_out})


def read_recordings(path: Path, replay: ReplaySpec) -> list[Recording]:
    """All recordings of a file or folder. A record of a call that failed has none.

    Raises:
        InputError: records that cannot be mapped, each with its line.
    """
    if path.is_dir():
        return _read_uncached(path, replay)
    found = path.lstat()  # each slice's stage reads anew, in one process: what did not change is not parsed again
    return _read_cached(path, (found.st_ino, found.st_mtime_ns, found.st_size), replay)


@lru_cache(maxsize=4)
def _read_cached(path: Path, stamp: tuple[int, int, int], replay: ReplaySpec) -> list[Recording]:
    return _read_uncached(path, replay)


def _read_uncached(path: Path, replay: ReplaySpec) -> list[Recording]:
    out: list[Recording] = []
    problems: list[Problem] = []
    for record in read_records(path):
        try:
            out += parse_recordings(record.value, replay)
        except _UnmappedError as error:
            problems.append(record.problem(str(error), error.remedy, error.field))
    if problems:
        raise InputError(problems)
    return out


def find_last_user_turn(value: Any) -> str | None:
    """The last user turn of a log or trace; None where there are no messages."""
    record = {"messages": value} if isinstance(value, list) else _to_dict(value)
    messages = _find_messages(_unwrap_part(record, "request")) or _find_messages(record)
    turns = [_join_text(m.get("content")) for m in messages if m.get("role") == "user"]
    return turns[-1] if turns else None


class _UnmappedError(ValueError):
    def __init__(self, message: str, field: str, remedy: str = "") -> None:
        self.field = field
        option = "text" if field == "prompt" else field
        self.remedy = remedy or f"Say where it is: `replay.{field}` in task.yaml, or --{option}-field of an import."
        super().__init__(message)


def parse_recordings(value: Any, replay: ReplaySpec) -> list[Recording]:
    """The completions in one record; more than one where a request asked for several."""
    record = {"messages": value} if isinstance(value, list) else value
    request, response = _unwrap_part(record, "request"), _unwrap_part(record, "response")
    messages = _find_messages(request) or _find_messages(record)
    said = list(_find_choices(record, response, replay))
    if not said and messages and messages[-1].get("role") == "assistant" and replay.completion is None:
        last, messages = messages[-1], messages[:-1]
        said = [_RecordedChoice(_join_text(last.get("content")), _find_reasoning(last), None, _read_tool_calls(last))]
    if not said:
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
    long = _to_string(record.get("conversation")) or ("\n".join(turns) if len(turns) > 1 else None)
    return [
        Recording(
            completion=one.text,
            prompt=prompt,
            conversation=long,
            id=str(id_) if id_ is not None else None,
            reasoning=one.reasoning or None,
            model=_to_string(get_by_path(record, replay.model) if replay.model else response.get("model")),
            finish_reason=one.finish or _to_string(record.get("finish_reason")),
            prompt_tokens=_find_count(usage, "prompt_tokens", "input_tokens", record),
            # The usage of several choices is that of all; none of them alone.
            completion_tokens=_find_count(usage, "completion_tokens", "output_tokens", record)
            if len(said) == 1
            else None,
            cost_usd=_to_number(record.get("cost_usd")) if len(said) == 1 else None,
            created=_to_number(response.get("created", response.get("created_at"))),
            tool_calls=one.calls,
        )
        for one in said
    ]


@dataclass(frozen=True)
class _RecordedChoice:
    """What one choice of a response says."""

    text: str
    reasoning: str | None = None
    finish: str | None = None
    calls: list[dict[str, Any]] | None = None


def _find_choices(record: dict[str, Any], response: dict[str, Any], replay: ReplaySpec) -> Iterator[_RecordedChoice]:
    """Where the declaration or a known shape says that the completion is."""
    reasoning = _to_string(get_by_path(record, replay.reasoning)) if replay.reasoning else None
    if replay.completion:
        if (found := _read_mapped(record, replay.completion, "completion")) is not None:
            yield _RecordedChoice(found, reasoning)
        return
    for choice in response.get("choices") or []:  # chat and text completions
        if isinstance(choice, dict):
            message = _to_dict(choice.get("message"))
            text = _join_text(message.get("content") if message else choice.get("text"))
            declined = None if text else _to_string(message.get("refusal"))
            finish = "refusal" if declined else _to_string(choice.get("finish_reason"))
            yield _RecordedChoice(
                text or declined or "", reasoning or _find_reasoning(message), finish, _read_tool_calls(message)
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
        used = [p for p in response["content"] if isinstance(p, dict) and p.get("type") == "tool_use"]
        calls = [{"function": {"name": p.get("name"), "arguments": p.get("input")}} for p in used]
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
    """The tool calls of a message by name and arguments, these as JSON text."""
    out = []
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list) else []:
        function = _to_dict(_to_dict(call).get("function")) or _to_dict(call)
        arguments = function.get("arguments")
        said = arguments if isinstance(arguments, str) else to_canonical_json(arguments or {})
        if _is_text(function.get("name")):
            out.append({"name": str(function["name"]), "arguments": said or "{}"})
    return out or None


def _is_failed(record: dict[str, Any], response: dict[str, Any]) -> bool:
    return bool(record.get("error") or response.get("error") or response.get("choices") == [])


def _unwrap_part(record: dict[str, Any], name: str) -> dict[str, Any]:
    """The request or response of a log, out of the envelope of a batch file; else the record itself."""
    part = record.get(name)
    if name == "request" and part is None and isinstance(record.get("body"), dict):
        part = record["body"]
    if not isinstance(part, dict):
        return record
    return part["body"] if isinstance(part.get("body"), dict) else part


def _find_messages(request: dict[str, Any]) -> list[dict[str, Any]]:
    for name in ("messages", "input"):
        found = request.get(name)
        if isinstance(found, dict):
            found = found.get("data")  # OpenAI's list of a stored completion's messages
        if isinstance(found, list):
            return [m for m in found if isinstance(m, dict)]
    return []


def _join_text(content: Any) -> str:
    """Plain, or in parts of which those of text count."""
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
    found = get_by_path(record, path)
    if found is None:
        raise _UnmappedError(f"there is nothing at {path!r}.", field, f"Mend the path of the {field}, or the record.")
    if isinstance(found, str | list):
        return _join_text(found)
    raise _UnmappedError(f"what stands at {path!r} is no text.", field, f"Mend the path of the {field}.")


def _extract_prompt(text: str, pattern: str) -> str:
    import polars as pl

    # The engine of Polars takes linear time on any text; the first group, or all that was found.
    found = pl.Series([text], dtype=pl.String).str.extract(pattern, 1).item()
    return text if found is None else str(found)


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
    for found in (usage.get(name), usage.get(other), record.get(name)):
        if isinstance(found, int) and not isinstance(found, bool):
            return found
    return None
