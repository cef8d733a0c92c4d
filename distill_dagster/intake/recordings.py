"""Read recorded completions from provider logs, stored completions, chat traces and files of a declared shape.

Logs of OpenAI and Anthropic are understood as they are. `teacher.replay` in task.yaml, or the options of an import, say
where the parts of any other record are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from distill_dagster.config import ReplaySpec
from distill_dagster.core.errors import InputError, Problem
from distill_dagster.core.hashing import hash_content
from distill_dagster.intake.chats import has_attachments, is_chat, parse_cell, read_chat, read_turn
from distill_dagster.intake.prompt_fields import PromptFieldError, find_chat, find_prompt
from distill_dagster.intake.recorded_responses import (
    RecordedChoice,
    build_choice,
    find_choices,
    find_last_assistant,
    has_empty_value,
    has_place_for_response,
    has_response,
    is_failed_call,
)
from distill_dagster.intake.row_files import FileFormat, get_by_path, scan_records
from distill_dagster.kinds.stated_probabilities import parse_probabilities

MAX_COUNT = 10**9
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
        soft_labels: the number stated for each label, by the label as it is written; it need not sum to 1.
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
    soft_labels: dict[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """The record that an import writes. Reading it gives this recording again.

        A prompt that begins as JSON is written as a turn, or it would be read as a chat that a spreadsheet cut.
        A completion is written so where it would be read as a chat.
        """
        record = {name: value for name, value in asdict(self).items() if value is not None}
        if self.prompt is not None and self.prompt.lstrip().startswith(("[", "{")):
            record["prompt"] = [{"role": "user", "content": self.prompt}]
        if _is_read_as_chat(self.completion):
            record["completion"] = [{"role": "assistant", "content": self.completion}]
        return record

    @cached_property
    def version(self) -> str:
        """Hash of the fields that become part of an answer, without the time."""
        excluded = {"prompt", "conversation", "id", "created"}
        excluded |= {"soft_labels"} if self.soft_labels is None else set()  # so that older recordings keep their hash
        return hash_content({name: value for name, value in asdict(self).items() if name not in excluded})


def _is_read_as_chat(text: str) -> bool:
    try:
        return parse_cell(text) != text
    except ValueError:
        return True


FAILED, NO_COMPLETION, WITH_PICTURE = "failed call", "without a completion", "with a picture or other attachment"
"""Why a record is passed over."""


@dataclass(frozen=True)
class RecordingSet:
    """The recordings of a file or folder.

    Attributes:
        left_out: the number of records that are passed over, by reason.
        problems: what cannot be read, each with its line.
        remarks: what was detected when the file was read.
    """

    recordings: list[Recording]
    left_out: dict[str, int] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    remarks: tuple[str, ...] = ()


def read_recordings(path: Path, replay: ReplaySpec) -> list[Recording]:
    """Read all recordings of a file or folder. Records without a completion are passed over.

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
    found = scan_recordings(path, replay)
    if found.problems:
        raise InputError(found.problems)
    return found.recordings


def scan_recordings(path: Path, replay: ReplaySpec, file_format: FileFormat | None = None) -> RecordingSet:
    """As `read_recordings`, with what is passed over and what cannot be read.

    Raises:
        InputError: there is no such file, or no record has a completion although no call failed.
    """
    source = scan_records(path, file_format)
    recordings: list[Recording] = []
    problems = list(source.problems)
    left_out: Counter[str] = Counter()
    silent: Problem | None = None
    for record in source.records:
        try:
            found = _parse_record(record.value, replay)
        except _UnmappedError as error:
            problems.append(record.make_problem(str(error), error.remedy, error.field))
            continue
        if isinstance(found, str):
            left_out[found] += 1
            if found == NO_COMPLETION and silent is None:
                nothing = _UnmappedError("no completion was found.", "completion")
                silent = record.make_problem(str(nothing), nothing.remedy, nothing.field)
        else:
            recordings += found
    problems.sort(key=lambda problem: (str(problem.file), problem.line or 0))
    if not recordings and not problems and silent is not None and set(left_out) == {NO_COMPLETION}:
        raise InputError([silent])
    return RecordingSet(recordings, dict(left_out), tuple(problems), tuple(source.remarks))


class _UnmappedError(ValueError):
    """A part of a record was not found, with the field and the remedy of the problem."""

    def __init__(self, message: str, field: str, remedy: str = "") -> None:
        self.field = field
        option = "text" if field == "prompt" else field
        self.remedy = remedy or f"Name its place: `replay.{field}` in task.yaml, or --{option}-field of an import."
        super().__init__(message)


def parse_recordings(value: Any, replay: ReplaySpec) -> list[Recording]:
    """The completions in one record: several if the request asked for several, none if it is passed over.

    Raises:
        ValueError: the record has no completion, or neither a prompt nor an id.
    """
    found = _parse_record(value, replay)
    return [] if isinstance(found, str) else found


def _parse_record(value: Any, replay: ReplaySpec) -> list[Recording] | str:
    """The recordings of a record, or why it is passed over."""
    if not isinstance(value, dict | list):
        raise _UnmappedError("the record is not an object.", "completion", "Write one JSON object for each record.")
    record = {"messages": value} if isinstance(value, list) else value
    try:
        return _parse_fields(record, replay)
    except _UnmappedError:
        raise
    except PromptFieldError as error:
        raise _UnmappedError(str(error), "prompt", error.remedy) from None
    except ValueError as error:  # a cell that was cut
        remedy = "Export it again: a spreadsheet cuts long cells."
        raise _UnmappedError(f"the record {error}.", "completion", remedy) from None


def _parse_fields(record: dict[str, Any], replay: ReplaySpec) -> list[Recording] | str:
    turns = find_chat(record)
    response, found = find_choices(record)
    choices = _read_named_choices(record, replay.completion) if replay.completion else found
    if not choices and not replay.completion and (said := find_last_assistant(turns)) is not None:
        choices, turns = [build_choice(said)], turns[: len(turns) - 1 - turns[::-1].index(said)]
    stated = _find_stated_probabilities(record, replay)
    if not choices and not replay.completion and (stated or not turns):
        choices = _read_labelled_choice(record, stated)
    if not choices and is_failed_call(record):
        return FAILED
    is_known = bool(turns or has_place_for_response(record)) and not has_response(record)
    if not choices and not replay.completion and not is_known:
        raise _UnmappedError("no completion was found.", "completion")
    choices = [choice for choice in choices if not choice.is_empty]
    if not choices:
        return FAILED if is_failed_call(record) else NO_COMPLETION
    asked = [turn for turn in turns if turn.role == "user"]
    if any(turn.has_attachment for turn in asked) or has_attachments(record):
        return WITH_PICTURE
    texts = [turn.text for turn in asked]
    prompt = _find_recorded_prompt(record, replay, texts)
    id_ = get_by_path(record, replay.id) if replay.id else record.get("custom_id") or record.get("id")
    if prompt is None and id_ is None:
        raise _UnmappedError("neither a prompt nor an id was found.", "prompt")
    usage = _to_dict(response.get("usage")) or _to_dict(response.get("usageMetadata")) or response
    reasoning = _to_string(get_by_path(record, replay.reasoning)) if replay.reasoning else None
    model = get_by_path(record, replay.model) if replay.model else response.get("model", response.get("modelVersion"))
    is_only = len(choices) == 1  # the usage of several choices is that of all together, not of one of them
    return [
        Recording(
            completion=choice.text,
            prompt=prompt,
            conversation=_to_string(record.get("conversation")) or ("\n".join(texts) if len(texts) > 1 else None),
            id=str(id_) if id_ is not None else None,
            reasoning=reasoning or choice.reasoning or None,
            model=_to_string(model),
            finish_reason=choice.finish or _to_string(record.get("finish_reason")),
            prompt_tokens=_find_count(usage, record, _PROMPT_TOKENS),
            completion_tokens=_find_count(usage, record, _COMPLETION_TOKENS) if is_only else None,
            cost_usd=_to_number(record.get("cost_usd")) if is_only else None,
            created=_to_number(response.get("created", response.get("created_at"))),
            tool_calls=choice.calls,
            soft_labels=stated if is_only else None,
        )
        for choice in choices
    ]


_PROMPT_TOKENS = ("prompt_tokens", "input_tokens", "inputTokens", "promptTokenCount", "prompt_eval_count")
_COMPLETION_TOKENS = ("completion_tokens", "output_tokens", "outputTokens", "candidatesTokenCount", "eval_count")


PROBABILITY_FIELDS = ("soft_labels", "probs", "probabilities")
"""Where records have the probabilities of labels, if nobody says where."""


def _find_stated_probabilities(record: dict[str, Any], replay: ReplaySpec) -> dict[str, float] | None:
    """The number stated for each label in a record: at the declared place, or in one of the usual fields."""
    names = [replay.soft_labels] if replay.soft_labels else list(PROBABILITY_FIELDS)
    found = [(name, value) for name in names if (value := get_by_path(record, name)) not in (None, "", {}, [])]
    if not found:
        return None
    name, value = found[0]
    try:
        return parse_probabilities(value)
    except ValueError as error:
        if not replay.soft_labels and "label" not in record:  # a log may mean something else by this name
            return None
        remedy = 'Write an object of labels and numbers, such as {"refund": 0.9, "login": 0.1}.'
        raise _UnmappedError(f"the probabilities {error}.", name, remedy) from None


def _read_labelled_choice(record: dict[str, Any], stated: dict[str, float] | None) -> list[RecordedChoice]:
    """The label of a record as its completion; without one, the likeliest label."""
    label = record.get("label")
    if label is not None and not isinstance(label, str):
        raise _UnmappedError("the label is not a text.", "label", "Write the name of the label as a string.")
    if not label and stated:
        label = max(stated, key=lambda name: stated[name])
    return [RecordedChoice(label, _to_string(record.get("reasoning")))] if label else []


def _read_named_choices(record: dict[str, Any], path: str) -> list[RecordedChoice]:
    """The completion at the declared place."""
    content = parse_cell(get_by_path(record, path))
    if content in (None, ""):
        if has_empty_value(record, path) or is_failed_call(record):
            return []
        remedy = "Fix the path of the completion, or the record."
        raise _UnmappedError(f"there is nothing at {path!r}.", "completion", remedy)
    if isinstance(content, dict):
        _, choices = find_choices(content)
        if not choices:
            raise _UnmappedError(f"the value at {path!r} is not a text.", "completion", "Fix the path.")
        return choices
    if is_chat(content):
        said = find_last_assistant(read_chat(content))
        return [build_choice(said)] if said else []
    if not isinstance(content, str | list):
        raise _UnmappedError(f"the value at {path!r} is not a text.", "completion", "Fix the path.")
    return [build_choice(read_turn({"content": content}, "assistant"))]


def _find_recorded_prompt(record: dict[str, Any], replay: ReplaySpec, user_turns: list[str]) -> str | None:
    """The prompt at the declared place, the last user turn, or the field that usually contains it."""
    prompt: str | None
    if replay.prompt:
        prompt = _read_named_prompt(record, replay.prompt)
    elif user_turns and user_turns[-1].strip():
        prompt = user_turns[-1]
    else:
        prompt = _find_plain_prompt(record)
    if prompt is not None and replay.prompt_pattern:
        prompt = _extract_prompt(prompt, replay.prompt_pattern)
    return prompt


def _read_named_prompt(record: dict[str, Any], path: str) -> str:
    if get_by_path(record, path) is None:
        raise _UnmappedError(f"there is nothing at {path!r}.", "prompt", "Fix the path of the prompt, or the record.")
    return find_prompt(record, [path]).text


def _find_plain_prompt(record: dict[str, Any]) -> str | None:
    for fields in (_to_dict(parse_cell(record.get("request"))), _to_dict(record.get("body")), record):
        if isinstance(fields.get("prompt"), str) and fields["prompt"].strip():
            return str(fields["prompt"])
        try:
            return find_prompt(fields).text
        except PromptFieldError as error:
            if error.is_ambiguous:
                raise
    return None


def _extract_prompt(text: str, pattern: str) -> str:
    import polars as pl

    # The regular expressions of Polars take linear time on any text.
    group = pl.Series([text], dtype=pl.String).str.extract(pattern, 1).item()
    return text if group is None else str(group)


def _to_dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _to_string(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _to_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def _find_count(usage: dict[str, Any], record: dict[str, Any], names: Sequence[str]) -> int | None:
    """A believable number of tokens: more would not fit into a table."""
    for fields in (usage, record):
        for count in (fields.get(name) for name in names):
            if isinstance(count, str) and count.isdecimal():
                count = int(count[:20])
            if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < MAX_COUNT:
                return count
    return None
