"""Import files of other programs as seed prompts, labelled rows or recorded completions of a task (`distill import`).

A file is imported whole or not at all, unless records that cannot be used are to be left out. Known and held-out
records are left out and counted, so importing a file again adds nothing. Seeds and recorded completions may come from
production: they are masked as in the inbox, and stored next to its prompts. Labelled rows are the user's own words:
they are appended to the files of the task folder, unmasked.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from distill_dagster.config import REPLAY_PREFIX, ReplaySpec
from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import refuse_symlink, write_atomically
from distill_dagster.core.hashing import to_canonical_json
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.import_options import (
    DUPLICATE,
    HELD_OUT,
    OTHER_ANSWER,
    TARGET_FILES,
    ImportLog,
    ImportOptions,
    ImportSummary,
)
from distill_dagster.intake.inbox import IncomingPrompt, accept_prompts, assign_slices, lock_inbox, sanitize_file_name
from distill_dagster.intake.labelled_records import WITH_TOOLS, build_rows, convert_turns, format_row, make_chat_remark
from distill_dagster.intake.masking import mask_id, mask_json, mask_text
from distill_dagster.intake.prompt_fields import PromptFieldError, find_prompt
from distill_dagster.intake.recordings import RECORDED_FOLDER, WITH_PICTURE, Recording, scan_recordings
from distill_dagster.intake.row_files import scan_records
from distill_dagster.intake.source_fields import find_id, find_slice
from distill_dagster.tasks import DEV_FILE, GOLDEN_FILE, LabelledRow, TaskFolder, Turn

__all__ = ["ImportOptions", "ImportSummary", "import_file"]


def import_file(folder: TaskFolder, path: Path, options: ImportOptions, inbox: Path) -> ImportSummary:
    """Import a file or folder into a task.

    Args:
        folder: the task, with its folder of accepted prompts.
        inbox: the task's own inbox, whose lock is held while writing.

    Raises:
        InputError: records cannot be used (each is named with its line), or the task's own files are malformed.
            Nothing was written.
        DistillError: the options do not go together.
    """
    options.check()
    if options.target == "seeds":
        return _import_seeds(folder, path, options, inbox)
    with lock_inbox(inbox):
        if options.target == "recorded":
            return _import_recorded(folder, path, options)
        return _import_labelled(folder, path, options)


def _import_seeds(folder: TaskFolder, path: Path, options: ImportOptions, inbox: Path) -> ImportSummary:
    source = scan_records(path, options.file_format)
    log = ImportLog(path, options, source.remarks, source.problems)
    has_conversations = folder.task.kind == "conversation"
    prompts: list[IncomingPrompt] = []
    cut_chats = 0
    for record in source.records:
        try:
            prompt = find_prompt(record.value, options.text_fields)
        except PromptFieldError as error:
            field = "+".join(options.text_fields) or "text"
            log.refuse(record, record.make_problem(str(error), error.remedy, field))
            continue
        key = find_slice(record, options, log)
        if log.is_invalid(record):
            continue
        if prompt.has_attachment:
            log.skipped[WITH_PICTURE] += 1
            continue
        turns: tuple[Turn, ...] | None = None
        text = prompt.text
        if has_conversations and len(prompt.turns) > 1:
            messages = convert_turns(prompt.turns)
            if messages is None:
                log.skipped[WITH_TOOLS] += 1
                continue
            turns = tuple(Turn.model_validate(message) for message in messages)
            text = "\n".join(turn.content for turn in turns if turn.role == "user")
        cut_chats += not has_conversations and sum(turn.role == "user" for turn in prompt.turns) > 1
        fields = record.value if isinstance(record.value, dict) else {}
        prompts.append(IncomingPrompt(text, fields, find_id(record, options.id_field), key, turns))
    log.stop_if_invalid()
    if cut_chats:
        log.remarks.append(make_chat_remark(cut_chats, folder.task.kind))
    keys = assign_slices(prompts, folder.task.inbox)
    summary = accept_prompts(folder, inbox, prompts, keys, sanitize_file_name(path), dry_run=options.dry_run)
    log.skipped.update({HELD_OUT: summary.held_out, DUPLICATE: summary.duplicates})
    places = {f"slice {key}": number for key, number in summary.accepted.items()}
    return log.summarize(len(source.records), places, summary.masked)


def _import_labelled(folder: TaskFolder, path: Path, options: ImportOptions) -> ImportSummary:
    name = TARGET_FILES[options.target]
    target = folder.path / name
    refuse_symlink(target)
    source = scan_records(path, options.file_format)
    log = ImportLog(path, options, source.remarks, source.problems)
    rows = build_rows(folder.task, source.records, log)
    existing = _read_existing(folder, name)
    held_out = {
        normalize_text(row.text) for other in _get_held_out_files(name) for row in _read_existing(folder, other)
    }
    known = {normalize_text(row.text): row for row in existing}
    ids = {row.id for row in existing}
    new: list[str] = []
    for record, raw, row in rows:
        key = normalize_text(row.text)
        if key in held_out:
            log.skipped[HELD_OUT] += 1
        elif key in known:
            has_same_answer = known[key].answer_json == row.answer_json
            log.skipped[DUPLICATE if has_same_answer else OTHER_ANSWER] += 1
        elif row.id in ids:
            message = f"the id {row.id!r} is in {name} already, with another text."
            log.refuse(record, record.make_problem(message, "Give it its own id.", options.id_field or "id"))
        else:
            known[key] = row
            ids.add(row.id)
            new.append(format_row(raw))
    log.stop_if_invalid()
    if new and not options.dry_run:
        _append_lines(target, new)
    return log.summarize(len(source.records), {name: len(new)})


def _get_held_out_files(name: str) -> tuple[str, ...]:
    """The files whose texts a file must not contain: rows for training or for choices must not be in golden."""
    return {GOLDEN_FILE: (DEV_FILE,), DEV_FILE: (GOLDEN_FILE,)}.get(name, (GOLDEN_FILE, DEV_FILE))


def _read_existing(folder: TaskFolder, name: str) -> list[LabelledRow]:
    return folder.read_rows(name) if (folder.path / name).exists() else []


def _import_recorded(folder: TaskFolder, path: Path, options: ImportOptions) -> ImportSummary:
    assert folder.accepted is not None
    name = options.name or re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("._-")[:63] or "log"
    relative = f"{RECORDED_FOLDER}/{name}.jsonl"
    target = folder.accepted / relative
    if (folder.path / relative).exists():
        raise DistillError(f"{folder.path / relative} is a file of yours. Choose another --name.")
    if len(options.text_fields) > 1:
        raise DistillError("--text-field names one field of recorded completions: the prompt as it was sent.")
    refuse_symlink(target, target.parent)
    replay = ReplaySpec(
        prompt=next(iter(options.text_fields), None),
        completion=options.completion_field,
        reasoning=options.reasoning_field,
        soft_labels=options.soft_labels_field,
        id=options.id_field,
    )
    found = scan_recordings(path, replay, options.file_format)
    log = ImportLog(path, options, found.remarks, found.problems)
    log.stop_if_invalid()
    log.skipped.update(found.left_out)
    known = Counter(_identify(recording) for recording in _read_imported(target))
    masked: Counter[str] = Counter()
    new: list[str] = []
    for recording in found.recordings:
        stored, counts = _mask_recording(recording, folder.task.inbox.phone_regions)
        identity = _identify(stored)
        if known[identity] > 0:  # as often as in the file: several equal completions of one prompt are votes
            known[identity] -= 1
            log.skipped[DUPLICATE] += 1
            continue
        masked.update(counts)
        new.append(to_canonical_json(stored.to_json()))
    if new and not options.dry_run:
        _append_lines(target, new)
    hint = f"teacher: {{model: {REPLAY_PREFIX}{name}}} in task.yaml replays them"
    if any(recording.prompt is None for recording in found.recordings):
        hint += ", with `replay: {match: id}`"
    elif folder.task.kind == "conversation" and any(recording.conversation for recording in found.recordings):
        hint += ", with `replay: {match: conversation}`"
    records = len(found.recordings) + sum(found.left_out.values())
    return log.summarize(records, {relative: len(new)}, masked, f"{hint}.")


def _read_imported(path: Path) -> list[Recording]:
    """The recordings that earlier imports wrote. Lines that a person broke are no recordings."""
    recordings = []
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        try:
            recordings.append(Recording(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return recordings


def _identify(recording: Recording) -> str:
    """What makes two recordings the same. Not the finish reason, whose words are read in more forms over time."""
    fields = asdict(recording)
    del fields["finish_reason"]
    return to_canonical_json(fields)


def _mask_recording(recording: Recording, regions: Sequence[str]) -> tuple[Recording, Counter[str]]:
    """The recording with every text masked, and the number of masked values by kind."""
    counts: Counter[str] = Counter()

    def mask(text: str) -> str:
        masked = mask_text(text, regions)
        counts.update(masked.counts)
        return masked.text

    def mask_optional(text: str | None) -> str | None:
        return None if text is None else mask(text)

    masked = replace(
        recording,
        prompt=mask_optional(recording.prompt),
        conversation=mask_optional(recording.conversation),
        id=None if recording.id is None else mask_id(recording.id, regions),
        completion=_mask_answer(recording.completion, mask),
        reasoning=mask_optional(recording.reasoning),
        tool_calls=[{**call, "arguments": _mask_answer(call["arguments"], mask)} for call in recording.tool_calls or []]
        or None,
        soft_labels=_mask_names(recording.soft_labels, mask),
    )
    return masked, counts


def _mask_names(soft_labels: dict[str, float] | None, mask: Callable[[str], str]) -> dict[str, float] | None:
    """Soft labels with the names of the labels masked; those that become the same add up."""
    if soft_labels is None:
        return None
    masked: dict[str, float] = {}
    for name, number in soft_labels.items():
        masked[mask(name)] = masked.get(mask(name), 0.0) + number
    return masked


def _mask_answer(text: str, mask: Callable[[str], str]) -> str:
    """A text with its values masked. In JSON each value is masked by itself: an escape may hide what it contains."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return mask(text)
    if not isinstance(value, dict | list | str):
        return mask(text)
    masked = mask_json(value, mask)
    return text if masked == value else to_canonical_json(masked)


def _append_lines(path: Path, lines: list[str]) -> None:
    """Add lines at the end of a file, all or none."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        content += b"\n"
    write_atomically(path, content + "".join(f"{line}\n" for line in lines).encode())
