"""The replay teacher: completions that were recorded elsewhere answer as any other teacher would.

Provider logs, OpenAI's stored completions and chat traces are understood as they are; a small declaration
(`teacher.replay` in task.yaml) maps whatever else there is. A prompt is found by its own text or its id: the few-shot
examples that stood around it when it was asked do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

from distill_dagster.config import REPLAY_PREFIX, ReplaySpec, TeacherSpec
from distill_dagster.core.errors import InputError, Problem, TeacherError
from distill_dagster.core.hashing import hash_content
from distill_dagster.intake.recordings import RECORDED_FOLDER, Recording, read_recordings
from distill_dagster.tasks import TaskFolder, normalize_text
from distill_dagster.teacher.providers.exchange import Request, Response

NOT_RECORDED = "no recorded completion"


class ReplayTeacher:
    """The completions of one replay teacher, by prompt; several of one prompt are its samples, in their order."""

    def __init__(self, entries: Mapping[str, list[Recording]], mask: Callable[[str], str]) -> None:
        """`mask` is how an import masked the prompts: a text with a mail address is found by what stands there now."""
        self._entries, self._mask = entries, mask

    @cached_property
    def version(self) -> str:
        return hash_content({key: [r.version for r in found] for key, found in self._entries.items()})

    def find(self, text: str) -> list[Recording]:
        key = normalize_text(text)
        return self._entries.get(key) or self._entries.get(normalize_text(self._mask(text))) or []

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
        return _build_response(found)


def _build_response(recording: Recording) -> Response:
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


_READ: WeakKeyDictionary[TaskFolder, dict[tuple[str, ReplaySpec | None], ReplayTeacher]] = WeakKeyDictionary()
"""The recordings of each open task folder, read once as the rest of the folder is."""


def load_replay_teacher(folder: TaskFolder, spec: TeacherSpec) -> ReplayTeacher:
    """The recordings of a replay teacher of a task, read once for each open folder.

    Raises:
        InputError: a file is missing or malformed, or a record cannot be mapped.
    """
    read = _READ.setdefault(folder, {})
    key = (spec.model, spec.replay)
    if key not in read:
        read[key] = _read_recorded(folder, spec)
    return read[key]


def recorded_version(folder: TaskFolder) -> str | None:
    """Hash of what the task's replay teachers have recorded, parsed; None where every teacher is asked."""
    versions = [load_replay_teacher(folder, spec).version for spec in folder.task.teacher_specs if spec.replayed]
    return versions[0] if len(versions) == 1 else hash_content(versions) if versions else None


def _read_recorded(folder: TaskFolder, spec: TeacherSpec) -> ReplayTeacher:
    """The recordings of a replay teacher of a task.

    Raises:
        InputError: a file is missing or malformed, or a record cannot be mapped.
    """
    from distill_dagster.intake.masking import MAX_TEXT_CHARS, mask_text

    replay = spec.replay or ReplaySpec()
    texts = _collect_texts_by_id(folder) if replay.match == "id" else {}
    entries: dict[str, list[Recording]] = {}
    for name in replay.files or [f"{RECORDED_FOLDER}/{spec.model.removeprefix(REPLAY_PREFIX)}.jsonl"]:
        for recording in read_recordings(find_recorded_path(folder, name), replay):
            if replay.match == "id":
                key = texts.get(recording.id or "")
            else:
                long = recording.conversation if replay.match == "conversation" else None
                key = long or recording.prompt
            if key is not None:
                entries.setdefault(normalize_text(key), []).append(recording)
    regions = folder.task.inbox.phone_regions
    return ReplayTeacher(entries, lambda text: mask_text(text[:MAX_TEXT_CHARS], regions).text)


def find_recorded_path(folder: TaskFolder, name: str) -> Path:
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


def _collect_texts_by_id(folder: TaskFolder) -> dict[str, str]:
    """What the task calls by an id: its seeds, imported prompts, and labelled rows."""
    out = {row.id: row.text for rows in (folder.examples, folder.dev, folder.golden) for row in rows}
    for key in folder.slice_keys():
        slice_ = folder.slice(key)
        out |= {seed.id: seed.text for seed in slice_.seeds if seed.id is not None}
        out |= {row.id: row.text for row in slice_.accepted if row.id is not None}
    return out
