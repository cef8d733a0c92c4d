"""The replay teacher: it answers with recorded completions, which `intake.recordings` reads.

A prompt is matched by its own text or its id. The system prompt and the few-shot examples of the recorded request are
ignored.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary

from distill_dagster.config import REPLAY_PREFIX, ReplaySpec, TeacherSpec
from distill_dagster.core.errors import InputError, Problem, TeacherError
from distill_dagster.core.files import refuse_symlink
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.masking import mask_id, mask_text
from distill_dagster.intake.recordings import RECORDED_FOLDER, Recording, read_recordings
from distill_dagster.tasks import TaskFolder
from distill_dagster.teacher.providers.body_parts import read_count
from distill_dagster.teacher.providers.exchange import Request, Response
from distill_dagster.teacher.providers.finish_reasons import normalize_finish_reason

NOT_RECORDED = "no recorded completion"
FIRST_TIME, LAST_TIME = 946_684_800, 4_102_444_800
"""2000 and 2100, in seconds since 1970."""


class ReplayTeacher:
    """The completions of one replay teacher by prompt. Several completions of a prompt are its samples."""

    def __init__(self, entries: Mapping[str, list[Recording]], mask: Callable[[str], str]) -> None:
        """Keep the recordings.

        Args:
            entries: the recordings by normalized prompt.
            mask: masks a prompt as an import does, so that a prompt with personal data matches its masked recording.
        """
        self._entries, self._mask = entries, mask

    @cached_property
    def version(self) -> str:
        """Hash of all recordings."""
        versions = {key: [recording.version for recording in group] for key, group in self._entries.items()}
        return hash_content(versions)

    def find(self, text: str) -> list[Recording]:
        """The recordings of a prompt, one for each sample."""
        key = normalize_text(text)
        return self._entries.get(key) or self._entries.get(normalize_text(self._mask(text))) or []

    def find_sample(self, text: str, sample: int) -> Recording | None:
        """The recording of one sample of a prompt."""
        recordings = self.find(text)
        return recordings[sample] if sample < len(recordings) else None

    def build_request(self, identity: str, text: str, sample: int) -> Request:
        """The request for a sample of a prompt. Its key covers the prompt and the recording, and changes with both."""
        recording = self.find_sample(text, sample)
        messages = [{"role": "user", "content": text}]
        return Request(identity, sample, {"recorded": recording and recording.version}, messages=messages)

    def answer(self, request: Request) -> Response:
        """Answer a request with its recording.

        Raises:
            TeacherError: there is no recording of it.
        """
        text = (request.messages or [{}])[-1].get("content", "")
        recording = self.find_sample(text, request.sample_index)
        if recording is None:
            raise TeacherError(NOT_RECORDED)
        return _build_response(recording)


def _build_response(recording: Recording) -> Response:
    """The response of a recording. `in_flight` is 0: nothing was sent, so the latency is not a measurement."""
    received = datetime.fromtimestamp(_read_time(recording.created) or time.time(), UTC)
    return Response(
        text=recording.completion,
        finish_reason=normalize_finish_reason(recording.finish_reason) if recording.finish_reason else "stop",
        positions=[],
        prompt_tokens=read_count(recording.prompt_tokens),
        completion_tokens=read_count(recording.completion_tokens),
        cached_tokens=None,
        cost_usd=recording.cost_usd,
        latency_s=0.0,
        in_flight=0,
        model_reported=recording.model,
        received_at=received.isoformat(timespec="milliseconds"),
        reasoning=recording.reasoning,
        tool_calls=recording.tool_calls,
        soft_labels=recording.soft_labels,
        mode="replay",
    )


def _read_time(created: float | None) -> float | None:
    """A time in seconds since 1970, also if it is in milliseconds, microseconds or nanoseconds.

    The time is only shown. None if it is not between 2000 and 2100.
    """
    scaled = (created / scale for scale in (1, 1e3, 1e6, 1e9)) if created is not None else ()
    return next((seconds for seconds in scaled if FIRST_TIME <= seconds <= LAST_TIME), None)


_loaded: WeakKeyDictionary[TaskFolder, dict[tuple[str, ReplaySpec | None], ReplayTeacher]] = WeakKeyDictionary()
"""The replay teachers of each open task folder. Like the rest of the folder, each is read once."""


def load_replay_teacher(folder: TaskFolder, spec: TeacherSpec) -> ReplayTeacher:
    """Load a replay teacher of a task, once for each open folder.

    Raises:
        InputError: a file is missing or malformed, or a record cannot be mapped.
    """
    loaded = _loaded.setdefault(folder, {})
    key = (spec.model, spec.replay)
    if key not in loaded:
        loaded[key] = _read_recorded(folder, spec)
    return loaded[key]


def compute_recorded_version(folder: TaskFolder) -> str | None:
    """Hash of the parsed recordings of all replay teachers of a task, or None if it has no replay teacher."""
    versions = [load_replay_teacher(folder, spec).version for spec in folder.task.teacher_specs if spec.is_replay]
    return versions[0] if len(versions) == 1 else hash_content(versions) if versions else None


def _read_recorded(folder: TaskFolder, spec: TeacherSpec) -> ReplayTeacher:
    replay = spec.replay or ReplaySpec()
    texts = _collect_texts_by_id(folder) if replay.match == "id" else {}
    entries: dict[str, list[Recording]] = {}
    for name in replay.files or [f"{RECORDED_FOLDER}/{spec.model.removeprefix(REPLAY_PREFIX)}.jsonl"]:
        for recording in read_recordings(find_recorded_path(folder, name), replay):
            if replay.match == "id":
                key = texts.get(recording.id or "")
            else:
                conversation = recording.conversation if replay.match == "conversation" else None
                key = conversation or recording.prompt
            if key is not None:
                entries.setdefault(normalize_text(key), []).append(recording)
    regions = folder.task.inbox.phone_regions
    return ReplayTeacher(entries, lambda text: mask_text(text, regions).text)


def find_recorded_path(folder: TaskFolder, name: str) -> Path:
    """The path of a recorded file: in the task folder, or where an import wrote it.

    Raises:
        InputError: there is no such file, or it is behind a symbolic link.
    """
    places = [folder.path / name, *([folder.accepted / name] if folder.accepted else [])]
    for place in places:
        refuse_symlink(place, *place.parents[: len(Path(name).parts) - 1])
        if place.exists():
            return place
    remedy = f"Put the file there, or run `distill import {folder.name} FILE --as recorded --name {Path(name).stem}`."
    raise InputError([Problem(places[0], "the recorded completions are missing.", remedy)])


def _collect_texts_by_id(folder: TaskFolder) -> dict[str, str]:
    """The texts of a task by their ids: of seeds, imported prompts and labelled rows."""
    texts = {row.id: row.text for rows in (folder.examples, folder.dev, folder.golden) for row in rows}
    for key in folder.list_slice_keys():
        content = folder.read_slice(key)
        texts |= {seed.id: seed.text for seed in content.seeds if seed.id is not None}
        texts |= {prompt.id: prompt.text for prompt in content.accepted if prompt.id is not None}
    regions = folder.task.inbox.phone_regions
    # An import stores an id with personal data as a hash.
    return texts | {mask_id(id_, regions): text for id_, text in texts.items()}
