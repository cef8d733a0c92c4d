"""The replay teacher: completions that were recorded elsewhere answer as any other teacher would.

Provider logs, OpenAI's stored completions and chat traces are understood as they are; a small declaration
(`teacher.replay` in task.yaml) maps whatever else there is. A prompt is found by its own text or its id: the few-shot
examples that stood around it when it was asked do not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from distill_dagster.errors import InputError, Problem, TeacherError
from distill_dagster.hashing import canonical_json, content_hash
from distill_dagster.records import lookup, read_records
from distill_dagster.spec import REPLAY, ReplaySpec, TeacherSpec
from distill_dagster.taskfiles import TaskFolder, normalize
from distill_dagster.teacher.client import Request
from distill_dagster.teacher.store import Response

FOLDER = "recorded"
"""Where recorded files lie: in the task folder, or beside the prompts from the inbox."""
NOT_RECORDED = "no recorded completion"


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


class Recorded:
    """The completions of one replay teacher, by prompt; several of one prompt are its samples, in their order."""

    def __init__(self, entries: Mapping[str, list[Recording]], mask: Callable[[str], str]) -> None:
        """`mask` is how an import masked the prompts: a text with a mail address is found by what stands there now."""
        self._entries, self._mask = entries, mask

    @cached_property
    def version(self) -> str:
        return content_hash({key: [r.version for r in found] for key, found in self._entries.items()})

    def find(self, text: str) -> list[Recording]:
        key = normalize(text)
        return self._entries.get(key) or self._entries.get(normalize(self._mask(text))) or []

    def sample(self, text: str, sample: int) -> Recording | None:
        found = self.find(text)
        return found[sample] if sample < len(found) else None

    def request(self, identity: str, text: str, sample: int) -> Request:
        """What stands for a sample of a prompt, whatever was shown when it was recorded. A changed recording is
        another request."""
        found = self.sample(text, sample)
        asked = [{"role": "user", "content": text}]
        return Request(identity, sample, {"recorded": found and found.version}, messages=asked)

    def answer(self, request: Request) -> Response:
        """The recording that a request is for.

        Raises:
            TeacherError: there is none.
        """
        found = self.sample((request.messages or [{}])[-1].get("content", ""), request.sample_index)
        if found is None:
            raise TeacherError(NOT_RECORDED)
        return _response(found)


def _response(recording: Recording) -> Response:
    """As if it had just been received; `in_flight` 0 tells that nothing was, so that its latency is not measured."""
    received = datetime.now(UTC) if recording.created is None else datetime.fromtimestamp(recording.created, UTC)
    return Response(
        text=recording.completion,
        finish_reason=recording.finish_reason or "stop",
        positions=[],
        prompt_tokens=recording.prompt_tokens,
        completion_tokens=recording.completion_tokens,
        cached_tokens=None,
        cost_usd=recording.cost_usd,
        latency_s=0.0,
        in_flight=0,
        model_reported=recording.model,
        received_at=received.isoformat(timespec="milliseconds"),
        reasoning=recording.reasoning,
        tool_calls=recording.tool_calls,
        mode="replay",
    )


def recorded(folder: TaskFolder, spec: TeacherSpec) -> Recorded:
    """The recordings of a replay teacher of a task.

    Raises:
        InputError: a file is missing or malformed, or a record cannot be mapped.
    """
    from distill_dagster.masking import MAX_CHARS, mask

    replay = spec.replay or ReplaySpec()
    texts = _texts_by_id(folder) if replay.match == "id" else {}
    entries: dict[str, list[Recording]] = {}
    for name in replay.files or [f"{FOLDER}/{spec.model.removeprefix(REPLAY)}.jsonl"]:
        for recording in read_recordings(recorded_path(folder, name), replay):
            if replay.match == "id":
                key = texts.get(recording.id or "")
            else:
                long = recording.conversation if replay.match == "conversation" else None
                key = long or recording.prompt
            if key is not None:
                entries.setdefault(normalize(key), []).append(recording)
    regions = folder.task.inbox.phone_regions
    return Recorded(entries, lambda text: mask(text[:MAX_CHARS], regions).text)


def recorded_path(folder: TaskFolder, name: str) -> Path:
    """Where a recorded file lies: in the task folder, else where an import put it."""
    places = [folder.path / name, *([folder.accepted / name] if folder.accepted else [])]
    for place in places:
        for part in (place, *place.parents[: len(Path(name).parts) - 1]):
            if part.is_symlink():
                raise InputError([Problem(part, "symbolic links are not followed.", "Put the file itself there.")])
        if place.exists():
            return place
    remedy = f"Put it there, or `distill import {folder.name} FILE --as recorded --name {Path(name).stem}`."
    raise InputError([Problem(places[0], "the recorded completions are missing.", remedy)])


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


def _texts_by_id(folder: TaskFolder) -> dict[str, str]:
    """What the task calls by an id: its seeds, imported prompts, and labelled rows."""
    out = {row.id: row.text for rows in (folder.examples, folder.dev, folder.golden) for row in rows}
    for key in folder.slice_keys():
        slice_ = folder.slice(key)
        out |= {seed.id: seed.text for seed in slice_.seeds if seed.id is not None}
        out |= {row.id: row.text for row in slice_.accepted if row.id is not None}
    return out
