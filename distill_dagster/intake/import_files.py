"""`distill import`: files that other programs wrote become seeds, labelled rows or recorded completions of a task.

A file is taken whole or not at all: what cannot be used is named with its line. What is there already, and what is
held out, is left out and counted, so that the same file twice adds nothing. Seeds and recorded completions may come
from production: they are masked as the inbox masks, and stored beside what came through it. Labelled rows are the
user's own words and go into the files of the task folder, unmasked.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill_dagster.config import REPLAY_NAME_PATTERN, REPLAY_PREFIX, SLICE_KEY_PATTERN, ReplaySpec
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.files import sync_folder
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.intake.inbox import IncomingPrompt, accept_prompts, assign_slices, lock_inbox, sanitize_file_name
from distill_dagster.intake.masking import MAX_TEXT_CHARS, mask_text
from distill_dagster.intake.recordings import RECORDED_FOLDER, Recording, find_last_user_turn, read_recordings
from distill_dagster.intake.row_files import SourceRecord, get_by_path, read_records
from distill_dagster.tasks import (
    DEV_FILE,
    EXAMPLES_FILE,
    GOLDEN_FILE,
    HUMAN_FILE,
    ImportTarget,
    LabelledRow,
    TaskFolder,
    normalize_text,
    read_rows,
)

TARGET_FILES = {"examples": EXAMPLES_FILE, "golden": GOLDEN_FILE, "dev": DEV_FILE, "human": HUMAN_FILE}
HELD_OUT, DUPLICATE, TOO_LONG = "golden or dev", "duplicate", "too long"
OTHER_ANSWER = "known with another answer"
_TEXT_FIELDS = ("text", "prompt", "question", "input")


@dataclass(frozen=True)
class ImportOptions:
    """What is imported as what. Fields are names of columns, dotted paths or JSON pointers."""

    target: ImportTarget
    slice: str | None = None
    slice_field: str | None = None
    text_field: str | None = None
    label_field: str | None = None
    id_field: str | None = None
    completion_field: str | None = None
    reasoning_field: str | None = None
    name: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class ImportSummary:
    """What became of the records of a file: where they went, and why others did not."""

    file: str
    target: ImportTarget
    records: int
    added: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    hint: str = ""

    @property
    def count(self) -> int:
        return sum(self.added.values())


def import_file(folder: TaskFolder, path: Path, options: ImportOptions, inbox: Path) -> ImportSummary:
    """Import a file or folder into a task.

    Args:
        folder: the task, with its folder of accepted prompts.
        inbox: the task's own inbox, whose lock keeps two writers apart.

    Raises:
        InputError: records that cannot be used, each with its line; or the task's own files are malformed. Nothing
            was written.
        DistillError: options that do not go together.
    """
    _check_options(options)
    inbox.mkdir(parents=True, exist_ok=True)
    if options.target == "seeds":
        return _import_seeds(folder, path, options, inbox)
    with lock_inbox(inbox):
        if options.target == "recorded":
            return _import_recorded(folder, path, options)
        return _import_labelled(folder, path, options)


def _check_options(options: ImportOptions) -> None:
    wanted = {
        "--slice": (options.slice, ("seeds", "examples", "golden", "dev", "human")),
        "--slice-field": (options.slice_field, ("seeds", "examples", "golden", "dev", "human")),
        "--label-field": (options.label_field, tuple(TARGET_FILES)),
        "--completion-field": (options.completion_field, ("recorded",)),
        "--reasoning-field": (options.reasoning_field, ("recorded", *TARGET_FILES)),
        "--name": (options.name, ("recorded",)),
    }
    for name, (value, targets) in wanted.items():
        if value is not None and options.target not in targets:
            raise DistillError(f"{name} has no meaning with --as {options.target}; it is for {', '.join(targets)}.")
    if options.slice is not None and options.slice_field is not None:
        raise DistillError("Give --slice or --slice-field, not both.")
    if options.slice is not None and not SLICE_KEY_PATTERN.fullmatch(options.slice):
        raise DistillError(f"{options.slice!r} cannot be a slice: it matches {SLICE_KEY_PATTERN.pattern}.")
    if options.name is not None and not REPLAY_NAME_PATTERN.fullmatch(REPLAY_PREFIX + options.name):
        raise DistillError(f"{options.name!r} cannot be the name of recorded completions: small letters, digits, . _ -")


def _import_seeds(folder: TaskFolder, path: Path, options: ImportOptions, inbox: Path) -> ImportSummary:
    records = read_records(path)
    problems: list[Problem] = []
    lines: list[IncomingPrompt] = []
    for record in records:
        text = _find_text(record, options, problems)
        fields = record.value if isinstance(record.value, dict) else {}
        named = _find_slice(record, options, problems)
        if text is not None:
            lines.append(IncomingPrompt(text, fields, _find_id(record, options), named))
    if problems:
        raise InputError(problems)
    keys = assign_slices(lines, folder.task.inbox)
    taken = accept_prompts(folder, inbox, lines, keys, sanitize_file_name(path), dry_run=options.dry_run)
    skipped = {HELD_OUT: taken.held_out, DUPLICATE: taken.duplicates, TOO_LONG: taken.too_long}
    places = {f"slice {key}": number for key, number in taken.accepted.items()}
    return _build_summary(path, options, len(records), places, skipped, taken.masked)


def _import_labelled(folder: TaskFolder, path: Path, options: ImportOptions) -> ImportSummary:
    name = TARGET_FILES[options.target]
    target = folder.path / name
    if target.is_symlink():
        raise InputError([Problem(target, "symbolic links are not followed.", "Put the file itself there.")])
    records = read_records(path)
    rows = _build_rows(folder, records, options)
    there = _read_existing(folder, name)
    held_out = {
        normalize_text(row.text) for other in _get_held_out_files(name) for row in _read_existing(folder, other)
    }
    known = {normalize_text(row.text): row for row in there}
    ids = {row.id: row for row in there}
    problems: list[Problem] = []
    new: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    for record, (raw, row) in zip(records, rows, strict=True):
        key = normalize_text(row.text)
        if key in held_out:
            skipped[HELD_OUT] += 1
        elif key in known:
            same = known[key].answer_json == row.answer_json
            skipped[DUPLICATE if same else OTHER_ANSWER] += 1
        elif row.id in ids:
            message = f"the id {row.id!r} is in {name} already, of another text."
            problems.append(record.problem(message, "Give it an id of its own.", options.id_field or "id"))
        else:
            known[key], ids[row.id] = row, row
            new.append(raw)
    if problems:
        raise InputError(problems)
    if new and not options.dry_run:
        _append_lines(target, [_format_row(raw) for raw in new])
    return _build_summary(path, options, len(records), {name: len(new)}, skipped, {})


def _get_held_out_files(name: str) -> tuple[str, ...]:
    """Which rows a file may not repeat: nothing that is chosen by or learned from may be in golden, nor dev's in it."""
    return {GOLDEN_FILE: (DEV_FILE,), DEV_FILE: (GOLDEN_FILE,)}.get(name, (GOLDEN_FILE, DEV_FILE))


def _read_existing(folder: TaskFolder, name: str) -> list[LabelledRow]:
    return folder.rows(name) if (folder.path / name).exists() else []


def _build_rows(
    folder: TaskFolder, records: list[SourceRecord], options: ImportOptions
) -> list[tuple[dict[str, Any], LabelledRow]]:
    """The records as rows of the task folder, checked by what reads those files."""
    wanted = "label" if folder.task.has_labels else "answer"
    problems: list[Problem] = []
    raws: list[dict[str, Any]] = []
    for record in records:
        value = record.value if isinstance(record.value, dict) else {}
        raw = {k: v for k, v in value.items() if k in LabelledRow.model_fields and v is not None and v != ""}
        text = _find_text(record, options, problems)
        raw["text"] = text.strip() if text is not None else None
        raw["id"] = _find_id(record, options) or _make_id(record, text or "")
        if "messages" in raw and not options.text_field:
            del raw["text"]  # the user's turns are the text
        if options.label_field and (label := get_by_path(value, options.label_field)) is not None:
            raw[wanted] = label
        if options.reasoning_field and (reasoning := get_by_path(value, options.reasoning_field)) is not None:
            raw["reasoning"] = reasoning
        raw["slice"] = options.slice or _find_slice(record, options, problems) or raw.get("slice")
        raw.setdefault("source", sanitize_file_name(record.file))
        ordered = ["id", "text", wanted, *raw]
        raws.append({name: raw[name] for name in ordered if raw.get(name) is not None})
    if problems:
        raise InputError(problems)
    seen: set[str] = set()
    ids = Counter(raw["id"] for raw in raws)
    for raw, record in zip(raws, records, strict=True):
        if not options.id_field and "id" not in record.value and ids[raw["id"]] > 1 and raw["id"] in seen:
            raw["id"] += f"-{record.line or len(seen)}"  # a repeated text: counted as a duplicate, not as a wrong id
        seen.add(raw["id"])
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / TARGET_FILES[options.target]
        copy.write_text("".join(f"{_format_row(raw)}\n" for raw in raws), encoding="utf-8")
        found = read_rows(copy, folder.task, labelled=True)
    named = {wanted: options.label_field, "text": options.text_field, "id": options.id_field}
    for problem in found.problems:
        at = records[(problem.line or 1) - 1]
        where = named.get(problem.field or "") or problem.field
        problems.append(replace(problem, file=at.file, line=at.line, field=where))
    if problems or found.value is None:
        raise InputError(problems)
    return list(zip(raws, found.value, strict=True))


def _import_recorded(folder: TaskFolder, path: Path, options: ImportOptions) -> ImportSummary:
    assert folder.accepted is not None
    name = options.name or re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("._-")[:63] or "log"
    relative = f"{RECORDED_FOLDER}/{name}.jsonl"
    target = folder.accepted / relative
    if (folder.path / relative).exists():
        raise DistillError(f"{folder.path / relative} is a file of yours; choose another --name.")
    if target.is_symlink() or target.parent.is_symlink():
        raise InputError([Problem(target, "symbolic links are not followed.", "Put the file itself there.")])
    replay = ReplaySpec(
        prompt=options.text_field,
        completion=options.completion_field,
        reasoning=options.reasoning_field,
        id=options.id_field,
    )
    found = read_recordings(path, replay)
    regions = folder.task.inbox.phone_regions
    there = Counter(target.read_text(encoding="utf-8").splitlines()) if target.exists() else Counter[str]()
    skipped: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    new: list[str] = []

    def clean(text: str | None) -> str | None:
        if text is None:
            return None
        hidden = mask_text(text, regions)
        counted.update(hidden.counts)
        return hidden.text

    for recording in found:
        texts = [recording.prompt, recording.conversation, recording.completion, recording.reasoning]
        texts += [call["arguments"] for call in recording.tool_calls or []]
        if any(len(text) > MAX_TEXT_CHARS for text in texts if text):
            skipped[TOO_LONG] += 1
            continue
        counted: Counter[str] = Counter()
        stored = _mask_recording(recording, clean)
        line = to_canonical_json(stored.as_json())
        if there[line] > 0:  # as often as it stood there: several equal samples of one prompt are votes
            there[line] -= 1
            skipped[DUPLICATE] += 1
            continue
        masked.update(counted)
        new.append(line)
    if new and not options.dry_run:
        _append_lines(target, new)
    hint = f"teacher: {{model: {REPLAY_PREFIX}{name}}} in task.yaml replays them"
    if any(recording.prompt is None for recording in found):
        hint += ", with `replay: {match: id}`"
    return _build_summary(path, options, len(found), {relative: len(new)}, skipped, masked, f"{hint}.")


def _mask_recording(recording: Recording, clean: Callable[[str | None], str | None]) -> Recording:
    return replace(
        recording,
        prompt=clean(recording.prompt),
        conversation=clean(recording.conversation),
        completion=clean(recording.completion) or "",
        reasoning=clean(recording.reasoning),
        tool_calls=[{**c, "arguments": clean(c["arguments"])} for c in recording.tool_calls or []] or None,
    )


def _build_summary(
    path: Path,
    options: ImportOptions,
    records: int,
    added: dict[str, int],
    skipped: dict[str, int] | Counter[str],
    masked: dict[str, int] | Counter[str],
    hint: str = "",
) -> ImportSummary:
    some = {name: number for name, number in sorted(skipped.items()) if number}
    places = {name: number for name, number in added.items() if number}
    return ImportSummary(
        sanitize_file_name(path), options.target, records, places, some, dict(sorted(masked.items())), hint
    )


def _find_text(record: SourceRecord, options: ImportOptions, problems: list[Problem]) -> str | None:
    """The text of a prompt: at the named place, else where records of other programs have it."""
    if options.text_field:
        found = get_by_path(record.value, options.text_field)
    else:
        value = record.value if isinstance(record.value, dict) else {}
        found = next(
            (value[name] for name in _TEXT_FIELDS if isinstance(value.get(name), str)),
            find_last_user_turn(record.value),
        )
    name = options.text_field or "text"
    if found is None:
        has = ", ".join(list(record.value)[:12]) if isinstance(record.value, dict) else "no fields"
        remedy = f"Name its field with --text-field. The record has: {has}."
        problems.append(record.problem("the text is missing.", remedy, name))
    elif not isinstance(found, str):
        problems.append(record.problem("what should be the text is none.", "Name another with --text-field.", name))
    elif not found.strip():
        problems.append(record.problem("the text is empty.", "Write it, or remove the record.", name))
    else:
        return found
    return None


def _find_slice(record: SourceRecord, options: ImportOptions, problems: list[Problem]) -> str | None:
    """The slice that a record names; None where it names none, or the command says nothing of slices."""
    if options.slice_field is None:
        return options.slice
    found = get_by_path(record.value, options.slice_field)
    if found is None or found == "":
        return None
    if isinstance(found, str) and SLICE_KEY_PATTERN.fullmatch(found):
        return found
    remedy = f"A slice matches {SLICE_KEY_PATTERN.pattern}."
    problems.append(record.problem(f"{str(found)[:60]!r} cannot be a slice.", remedy, options.slice_field))
    return None


def _find_id(record: SourceRecord, options: ImportOptions) -> str | None:
    found = get_by_path(record.value, options.id_field or "id")
    return str(found) if isinstance(found, str | int) and not isinstance(found, bool) and str(found) else None


def _make_id(record: SourceRecord, text: str) -> str:
    """An id for a row that has none: the same text of the same file always has the same."""
    return f"{sanitize_file_name(record.file).rsplit('.', 1)[0]}-{hash_content(normalize_text(text))[:10]}"


def _format_row(raw: dict[str, Any]) -> str:
    return json.dumps(raw, ensure_ascii=False, default=str)  # a Parquet file may hold dates


def _append_lines(path: Path, lines: list[str]) -> None:
    """Add lines at the end of a file, all or none: written aside, durable, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    if before and not before.endswith(b"\n"):
        before += b"\n"
    temporary = path.with_name(f".{path.name}.writing-{os.getpid()}")
    try:
        with os.fdopen(
            os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644), "wb"
        ) as handle:
            handle.write(before + "".join(f"{line}\n" for line in lines).encode())
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)
