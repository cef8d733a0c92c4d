"""Import files of other programs as seed prompts, labelled rows or recorded completions of a task (`distill import`).

A file is imported whole or not at all: each record that cannot be used is named with its line. Known and held-out
records are left out and counted, so importing a file again adds nothing. Seeds and recorded completions may come from
production: they are masked as in the inbox, and stored next to its prompts. Labelled rows are the user's own words:
they are appended to the files of the task folder, unmasked.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from distill_dagster.config import REPLAY_NAME_PATTERN, REPLAY_PREFIX, SLICE_KEY_PATTERN, ReplaySpec
from distill_dagster.core.errors import DistillError, InputError, Problem
from distill_dagster.core.files import refuse_symlink, write_atomically
from distill_dagster.core.hashing import hash_content, to_canonical_json
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.inbox import IncomingPrompt, accept_prompts, assign_slices, lock_inbox, sanitize_file_name
from distill_dagster.intake.masking import mask_id, mask_json, mask_text
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
    read_rows,
)

TARGET_FILES = {"examples": EXAMPLES_FILE, "golden": GOLDEN_FILE, "dev": DEV_FILE, "human": HUMAN_FILE}
HELD_OUT, DUPLICATE, OTHER_ANSWER = "golden or dev", "duplicate", "known with another answer"
"""Why a record is left out."""
_TEXT_FIELDS = ("text", "prompt", "question", "input")


@dataclass(frozen=True)
class ImportOptions:
    """What records become, and where their parts are. Fields are names of columns, dotted paths or JSON pointers."""

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
    """What happened to the records of a file.

    Attributes:
        added: the number of new records by place, such as `slice billing` or `golden.jsonl`.
        skipped: the number of records left out, by reason.
        masked: the number of masked values by kind.
        hint: how to use what was imported.
    """

    file: str
    target: ImportTarget
    records: int
    added: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    hint: str = ""

    @property
    def count(self) -> int:
        """The number of new records."""
        return sum(self.added.values())


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
    _check_options(options)
    if options.target == "seeds":
        return _import_seeds(folder, path, options, inbox)
    with lock_inbox(inbox):
        if options.target == "recorded":
            return _import_recorded(folder, path, options)
        return _import_labelled(folder, path, options)


def _check_options(options: ImportOptions) -> None:
    allowed = {
        "--slice": (options.slice, ("seeds", *TARGET_FILES)),
        "--slice-field": (options.slice_field, ("seeds", *TARGET_FILES)),
        "--label-field": (options.label_field, tuple(TARGET_FILES)),
        "--completion-field": (options.completion_field, ("recorded",)),
        "--reasoning-field": (options.reasoning_field, ("recorded", *TARGET_FILES)),
        "--name": (options.name, ("recorded",)),
    }
    for name, (value, targets) in allowed.items():
        if value is not None and options.target not in targets:
            raise DistillError(f"{name} has no meaning with --as {options.target}; it is for {', '.join(targets)}.")
    if options.slice is not None and options.slice_field is not None:
        raise DistillError("Give --slice or --slice-field, not both.")
    if options.slice is not None and not SLICE_KEY_PATTERN.fullmatch(options.slice):
        raise DistillError(f"{options.slice!r} cannot be a slice. Use a name that matches {SLICE_KEY_PATTERN.pattern}.")
    if options.name is not None and not REPLAY_NAME_PATTERN.fullmatch(REPLAY_PREFIX + options.name):
        raise DistillError(
            f"{options.name!r} cannot be the name of recorded completions. Use small letters, digits, '.', '_' and '-'."
        )


def _import_seeds(folder: TaskFolder, path: Path, options: ImportOptions, inbox: Path) -> ImportSummary:
    records = read_records(path)
    problems: list[Problem] = []
    prompts: list[IncomingPrompt] = []
    for record in records:
        text = _find_text(record, options, problems)
        fields = record.value if isinstance(record.value, dict) else {}
        named = _find_slice(record, options, problems)
        if text is not None:
            prompts.append(IncomingPrompt(text, fields, _find_id(record, options), named))
    if problems:
        raise InputError(problems)
    keys = assign_slices(prompts, folder.task.inbox)
    summary = accept_prompts(folder, inbox, prompts, keys, sanitize_file_name(path), dry_run=options.dry_run)
    skipped = {HELD_OUT: summary.held_out, DUPLICATE: summary.duplicates}
    places = {f"slice {key}": number for key, number in summary.accepted.items()}
    return _build_summary(path, options, len(records), places, skipped, summary.masked)


def _import_labelled(folder: TaskFolder, path: Path, options: ImportOptions) -> ImportSummary:
    name = TARGET_FILES[options.target]
    target = folder.path / name
    refuse_symlink(target)
    records = read_records(path)
    rows = _build_rows(folder, records, options)
    existing = _read_existing(folder, name)
    held_out = {
        normalize_text(row.text) for other in _get_held_out_files(name) for row in _read_existing(folder, other)
    }
    known = {normalize_text(row.text): row for row in existing}
    ids = {row.id: row for row in existing}
    problems: list[Problem] = []
    new: list[dict[str, Any]] = []
    skipped: Counter[str] = Counter()
    for record, (raw, row) in zip(records, rows, strict=True):
        key = normalize_text(row.text)
        if key in held_out:
            skipped[HELD_OUT] += 1
        elif key in known:
            has_same_answer = known[key].answer_json == row.answer_json
            skipped[DUPLICATE if has_same_answer else OTHER_ANSWER] += 1
        elif row.id in ids:
            message = f"the id {row.id!r} is in {name} already, with another text."
            problems.append(record.make_problem(message, "Give it its own id.", options.id_field or "id"))
        else:
            known[key], ids[row.id] = row, row
            new.append(raw)
    if problems:
        raise InputError(problems)
    if new and not options.dry_run:
        _append_lines(target, [_format_row(raw) for raw in new])
    return _build_summary(path, options, len(records), {name: len(new)}, skipped, {})


def _get_held_out_files(name: str) -> tuple[str, ...]:
    """The files whose texts a file must not contain: rows for training or for choices must not be in golden."""
    return {GOLDEN_FILE: (DEV_FILE,), DEV_FILE: (GOLDEN_FILE,)}.get(name, (GOLDEN_FILE, DEV_FILE))


def _read_existing(folder: TaskFolder, name: str) -> list[LabelledRow]:
    return folder.read_rows(name) if (folder.path / name).exists() else []


def _build_rows(
    folder: TaskFolder, records: list[SourceRecord], options: ImportOptions
) -> list[tuple[dict[str, Any], LabelledRow]]:
    """The records as raw and parsed rows of the task folder, checked as the rows in its files are."""
    answer_field = "label" if folder.task.has_labels else "answer"
    problems: list[Problem] = []
    raws: list[dict[str, Any]] = []
    for record in records:
        value = record.value if isinstance(record.value, dict) else {}
        raw = {name: v for name, v in value.items() if name in LabelledRow.model_fields and v is not None and v != ""}
        text = _find_text(record, options, problems)
        raw["text"] = text.strip() if text is not None else None
        raw["id"] = _find_id(record, options) or _make_id(record, text or "")
        if "messages" in raw and not options.text_field:
            del raw["text"]  # the user's turns are the text
        if options.label_field and (label := get_by_path(value, options.label_field)) is not None:
            raw[answer_field] = label
        if options.reasoning_field and (reasoning := get_by_path(value, options.reasoning_field)) is not None:
            raw["reasoning"] = reasoning
        raw["slice"] = options.slice or _find_slice(record, options, problems) or raw.get("slice")
        raw.setdefault("source", sanitize_file_name(record.file))
        ordered = ["id", "text", answer_field, *raw]
        raws.append({name: raw[name] for name in ordered if raw.get(name) is not None})
    if problems:
        raise InputError(problems)
    seen: set[str] = set()
    ids = Counter(raw["id"] for raw in raws)
    for raw, record in zip(raws, records, strict=True):
        if not options.id_field and "id" not in record.value and ids[raw["id"]] > 1 and raw["id"] in seen:
            raw["id"] += f"-{record.line or len(seen)}"  # a duplicate text must not be reported as a duplicate id
        seen.add(raw["id"])
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / TARGET_FILES[options.target]
        copy.write_text("".join(f"{_format_row(raw)}\n" for raw in raws), encoding="utf-8")
        result = read_rows(copy, folder.task, labelled=True)
    named = {answer_field: options.label_field, "text": options.text_field, "id": options.id_field}
    for problem in result.problems:
        record = records[(problem.line or 1) - 1]
        field_name = named.get(problem.field or "") or problem.field
        problems.append(replace(problem, file=record.file, line=record.line, field=field_name))
    if problems or result.value is None:
        raise InputError(problems)
    return list(zip(raws, result.value, strict=True))


def _import_recorded(folder: TaskFolder, path: Path, options: ImportOptions) -> ImportSummary:
    assert folder.accepted is not None
    name = options.name or re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("._-")[:63] or "log"
    relative = f"{RECORDED_FOLDER}/{name}.jsonl"
    target = folder.accepted / relative
    if (folder.path / relative).exists():
        raise DistillError(f"{folder.path / relative} is a file of yours. Choose another --name.")
    refuse_symlink(target, target.parent)
    replay = ReplaySpec(
        prompt=options.text_field,
        completion=options.completion_field,
        reasoning=options.reasoning_field,
        id=options.id_field,
    )
    recordings = read_recordings(path, replay)
    known = Counter(target.read_text(encoding="utf-8").splitlines()) if target.exists() else Counter[str]()
    skipped: Counter[str] = Counter()
    masked: Counter[str] = Counter()
    new: list[str] = []
    for recording in recordings:
        stored, counts = _mask_recording(recording, folder.task.inbox.phone_regions)
        line = to_canonical_json(stored.to_json())
        if known[line] > 0:  # as often as in the file: several equal completions of one prompt are votes
            known[line] -= 1
            skipped[DUPLICATE] += 1
            continue
        masked.update(counts)
        new.append(line)
    if new and not options.dry_run:
        _append_lines(target, new)
    hint = f"teacher: {{model: {REPLAY_PREFIX}{name}}} in task.yaml replays them"
    if any(recording.prompt is None for recording in recordings):
        hint += ", with `replay: {match: id}`"
    return _build_summary(path, options, len(recordings), {relative: len(new)}, skipped, masked, f"{hint}.")


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
    )
    return masked, counts


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


def _build_summary(
    path: Path,
    options: ImportOptions,
    records: int,
    added: dict[str, int],
    skipped: dict[str, int] | Counter[str],
    masked: dict[str, int] | Counter[str],
    hint: str = "",
) -> ImportSummary:
    return ImportSummary(
        sanitize_file_name(path),
        options.target,
        records,
        added={place: number for place, number in added.items() if number},
        skipped={reason: number for reason, number in sorted(skipped.items()) if number},
        masked=dict(sorted(masked.items())),
        hint=hint,
    )


def _find_text(record: SourceRecord, options: ImportOptions, problems: list[Problem]) -> str | None:
    """The text of a prompt: in the named field, else where records of other programs usually have it."""
    name = options.text_field or "text"
    text = get_by_path(record.value, options.text_field) if options.text_field else _find_usual_text(record.value)
    if text is None:
        names = ", ".join(list(record.value)[:12]) if isinstance(record.value, dict) else "no fields"
        remedy = f"Name its field with --text-field. The record has: {names}."
        problems.append(record.make_problem("the text is missing.", remedy, name))
    elif not isinstance(text, str):
        remedy = "Name another field with --text-field."
        problems.append(record.make_problem("the text field is not a string.", remedy, name))
    elif not text.strip():
        problems.append(record.make_problem("the text is empty.", "Write it, or remove the record.", name))
    else:
        return text
    return None


def _find_usual_text(value: Any) -> str | None:
    fields = value if isinstance(value, dict) else {}
    named = (fields[name] for name in _TEXT_FIELDS if isinstance(fields.get(name), str))
    return next(named, find_last_user_turn(value))


def _find_slice(record: SourceRecord, options: ImportOptions, problems: list[Problem]) -> str | None:
    """The slice that a record names, or else that of the command, if there is one."""
    if options.slice_field is None:
        return options.slice
    key = get_by_path(record.value, options.slice_field)
    if key is None or key == "":
        return None
    if isinstance(key, str) and SLICE_KEY_PATTERN.fullmatch(key):
        return key
    remedy = f"Use a name that matches {SLICE_KEY_PATTERN.pattern}."
    problems.append(record.make_problem(f"{str(key)[:60]!r} cannot be a slice.", remedy, options.slice_field))
    return None


def _find_id(record: SourceRecord, options: ImportOptions) -> str | None:
    id_ = get_by_path(record.value, options.id_field or "id")
    return str(id_) if isinstance(id_, str | int) and not isinstance(id_, bool) and str(id_) else None


def _make_id(record: SourceRecord, text: str) -> str:
    """An id for a row without one: the same text in the same file always gets the same id."""
    return f"{sanitize_file_name(record.file).rsplit('.', 1)[0]}-{hash_content(normalize_text(text))[:10]}"


def _format_row(raw: dict[str, Any]) -> str:
    return json.dumps(raw, ensure_ascii=False, default=str)  # a Parquet file may contain dates


def _append_lines(path: Path, lines: list[str]) -> None:
    """Add lines at the end of a file, all or none."""
    content = path.read_bytes() if path.exists() else b""
    if content and not content.endswith(b"\n"):
        content += b"\n"
    write_atomically(path, content + "".join(f"{line}\n" for line in lines).encode())
