"""Take new prompts from the inbox of a task: JSONL files, one at a time.

A file is taken whole or rejected. Its prompts are masked, sorted into slices and appended to the accepted files.
Held-out prompts and duplicates are counted and not stored. A file leaves the inbox only after its prompts are durable.
So an interrupted file is taken again, and prompts that are already stored are recognised.

No message quotes a line, because it may contain data that must be masked.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl

from distill_dagster.config import SLICE_KEY_PATTERN, InboxSpec
from distill_dagster.core.errors import DistillError
from distill_dagster.core.files import lock_file, refuse_symlink, sync_folder, write_atomically
from distill_dagster.core.formatting import count_noun
from distill_dagster.core.hashing import hash_content
from distill_dagster.core.json_text import replace_surrogates
from distill_dagster.core.text import normalize_text
from distill_dagster.intake.accepted import append_accepted
from distill_dagster.intake.masking import MaskedText, mask_id, mask_text
from distill_dagster.intake.row_files import reject_repeated_fields
from distill_dagster.tasks import TaskFolder, Turn
from distill_dagster.tasks.accepted import AcceptedPrompt, get_accepted_path, list_accepted_slices, read_accepted
from distill_dagster.tasks.rows import collect_held_out_keys

UNSORTED_SLICE = "unsorted"
"""The slice of prompts that name no slice and match no rule."""
QUIET_S = 10
"""A file that changed within this many seconds may still be written to, and waits."""
MAX_FILE_BYTES = 64 * 1024 * 1024
DONE_FOLDER, REJECTED_FOLDER, LOCK_FILE = "done", "rejected", ".lock"
_UNFINISHED_SUFFIXES = (".part", ".tmp")
_JSON_TYPES = {dict: "an object", list: "a list", int: "a number", float: "a number", bool: "true or false"}


@dataclass(frozen=True)
class InboxSummary:
    """What happened to one file.

    Attributes:
        state: `rejected` if the file is malformed; a `skipped` or `waiting` file stays in the inbox.
        why: the reason, if the file was not accepted.
        accepted: the number of new prompts by slice.
        masked: the number of masked values by kind, such as EMAIL.
    """

    file: str
    state: Literal["accepted", "rejected", "skipped", "waiting"]
    why: str = ""
    accepted: dict[str, int] = field(default_factory=dict)
    masked: dict[str, int] = field(default_factory=dict)
    held_out: int = 0
    duplicates: int = 0

    def get_counts(self) -> dict[str, Any]:
        """The counts as they are stored in the summary of a file."""
        return {
            "accepted": self.accepted,
            "masked": self.masked,
            "refused_golden_or_dev": self.held_out,
            "duplicates": self.duplicates,
        }

    def __str__(self) -> str:
        if self.state != "accepted":
            return f"{self.file}: {self.state}: {self.why}"
        slices = ", ".join(f"{n} to {key}" for key, n in self.accepted.items())
        masked = ", ".join(f"{n} {kind}" for kind, n in self.masked.items())
        left_out = [(self.held_out, "golden or dev"), (self.duplicates, "duplicates")]
        not_stored = ", ".join(f"{n} {reason}" for n, reason in left_out if n)
        parts = [f"accepted {slices or 'none'}", f"masked {masked}" if masked else ""]
        parts.append(f"not stored: {not_stored}" if not_stored else "")
        return f"{self.file}: " + "; ".join(part for part in parts if part)


@dataclass(frozen=True)
class IncomingPrompt:
    """A prompt to store, with all fields of its record: a rule may use any.

    Attributes:
        slice: the slice that an import names.
        messages: the turns of an imported conversation, whose user turns are the text.
    """

    text: str
    fields: dict[str, Any]
    id: str | None = None
    slice: str | None = None
    messages: tuple[Turn, ...] | None = None


@dataclass(frozen=True)
class _FileContent:
    """The content of a file. `batch` distinguishes it from a later file with the same name."""

    raw: bytes
    batch: str
    stamp: tuple[int, int, int]


class _SkippedFileError(Exception):
    """Why a file stays in the inbox; `waits` if it will be read later."""

    def __init__(self, why: str, waits: bool = False) -> None:
        self.waits = waits
        super().__init__(why)


def compute_wait_s(inbox: Path) -> float | None:
    """Seconds until the newest file in a task's inbox is old enough to be read; None if no file has to wait."""
    files = [path for path in _list_files(inbox) if path.suffix == ".jsonl" and path.is_file()]
    ages = (_get_age_s(path) for path in files if not path.is_symlink())
    young = [QUIET_S - age for age in ages if age < QUIET_S]
    return max(young) if young else None


def process_inbox(
    folder: TaskFolder, inbox: Path, *, lock_s: float = -1, limit_s: float | None = None
) -> list[InboxSummary]:
    """Take every file in the inbox of a task.

    Args:
        folder: the task, with its folder of accepted prompts.
        inbox: the task's own inbox, `inbox/<task>`.
        lock_s: how many seconds to wait while another process takes files; -1 for no limit.
        limit_s: start no further file after this many seconds.

    Raises:
        InputError: the task's own files are malformed, so prompts cannot be compared with them. Nothing was taken.
        DistillError: another process holds the lock, or a file cannot be written.
    """
    if not inbox.is_dir() or not _list_files(inbox):
        return []
    refuse_symlink(inbox, inbox / DONE_FOLDER, inbox / REJECTED_FOLDER)
    with lock_inbox(inbox, lock_s):
        processor = _InboxProcessor(folder, inbox)
        started, summaries = time.monotonic(), []
        for path in _list_files(inbox):
            if limit_s is not None and time.monotonic() - started > limit_s:
                break
            try:
                summaries.append(processor.process_file(path))
            except OSError as error:  # a full disk, a folder without write permission
                raise DistillError(f"{path.name!r} could not be taken: {error.strerror}.") from error
        return summaries


def accept_prompts(
    folder: TaskFolder,
    inbox: Path,
    prompts: list[IncomingPrompt],
    keys: list[str],
    source: str,
    dry_run: bool = False,
    lock_s: float = -1,
) -> InboxSummary:
    """Mask, compare and store the prompts of an import or of the request log, as those of a file in the inbox.

    Args:
        keys: the slice of each prompt.
        source: the name of the imported file.
        lock_s: how many seconds to wait while another process takes files; -1 for no limit.

    Raises:
        InputError: the task's own files are malformed, so prompts cannot be compared with them.
        DistillError: another process holds the lock.
    """
    with lock_inbox(inbox, lock_s):
        batch = hash_content([source, os.getpid(), time.time_ns()])[:16]
        return _InboxProcessor(folder, inbox).store_prompts(prompts, keys, source, batch, dry_run)


def lock_inbox(inbox: Path, lock_s: float = -1) -> AbstractContextManager[None]:
    """Hold the lock of a task's inbox, accepted prompts and imported files across processes.

    Raises:
        DistillError: another process still holds the lock after `lock_s` seconds.
    """
    return lock_file(inbox / LOCK_FILE, lock_s, f"Another process is taking the files in {inbox}. Try again later.")


def _list_files(inbox: Path) -> list[Path]:
    """The files in the inbox by name, without those whose name marks them as unfinished."""
    files = [p for p in inbox.iterdir() if not p.name.startswith(".") and p.suffix not in _UNFINISHED_SUFFIXES]
    return sorted(path for path in files if path.name not in (DONE_FOLDER, REJECTED_FOLDER))


def _get_age_s(path: Path) -> float:
    """Seconds since a file changed. A modification time in the future must not make a file wait without end."""
    try:
        return abs(time.time() - path.lstat().st_mtime)
    except FileNotFoundError:
        return 0.0


class _InboxProcessor:
    """Takes files into one task. Held-out and known prompts are read once."""

    def __init__(self, folder: TaskFolder, inbox: Path) -> None:
        assert folder.accepted is not None, "the task must be opened with its folder of accepted prompts"
        self.inbox, self.accepted = inbox, folder.accepted
        self.spec: InboxSpec = folder.task.inbox
        self.held_out = collect_held_out_keys(folder.golden, folder.dev)
        self.held_out |= {normalize_text(self._mask(row.text).text) for row in [*folder.golden, *folder.dev]}
        self.known: dict[str, tuple[str, str]] = {}  # batch and slice of each stored prompt, by its key
        for key in folder.list_written_slice_keys():
            for seed in folder.read_slice(key).seeds:
                self.known[_make_key(seed.text, seed.messages)] = ("", key)
        for key in list_accepted_slices(self.accepted):
            for row in read_accepted(get_accepted_path(self.accepted, key)):
                self.known.setdefault(_make_key(row.text, row.messages), (row.batch, key))

    def _mask(self, text: str) -> MaskedText:
        return mask_text(text, self.spec.phone_regions)

    def _mask_prompt(self, prompt: IncomingPrompt) -> tuple[str, tuple[Turn, ...] | None, Counter[str]]:
        """The masked text, the masked turns of a conversation, and the number of masked values by kind."""
        counts: Counter[str] = Counter()
        if prompt.messages is None:
            masked = self._mask(prompt.text)
            counts.update(masked.counts)
            return masked.text, None, counts
        turns = []
        for turn in prompt.messages:
            masked = self._mask(turn.content)
            counts.update(masked.counts)
            turns.append(turn.model_copy(update={"content": masked.text}))
        return "\n".join(turn.content for turn in turns if turn.role == "user"), tuple(turns), counts

    def process_file(self, path: Path) -> InboxSummary:
        """Take, reject or skip one file."""
        name = sanitize_file_name(path)
        try:
            content = self._read(path)
        except _SkippedFileError as why:
            return InboxSummary(name, "waiting" if why.waits else "skipped", str(why))
        except OSError as error:
            return InboxSummary(name, "skipped", f"cannot be read: {error.strerror}")
        prompts, problems = _parse_file(content.raw, self.spec)
        if problems:
            return self._reject(path, name, problems, _count_lines(content.raw))
        summary = self.store_prompts(prompts, assign_slices(prompts, self.spec), name, content.batch)
        return self._finish(path, content, summary)

    def _read(self, path: Path) -> _FileContent:
        if path.is_symlink():
            raise _SkippedFileError("symbolic links are not followed")
        if not path.is_file():
            raise _SkippedFileError("not a file")
        if path.suffix != ".jsonl":
            raise _SkippedFileError("only files that end with .jsonl are read")
        if (age := _get_age_s(path)) < QUIET_S:
            raise _SkippedFileError(f"changed {age:.0f} s ago; it must be unchanged for {QUIET_S} s", waits=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as handle:
            stat = os.fstat(descriptor)
            if stat.st_size > MAX_FILE_BYTES:
                raise _SkippedFileError(f"larger than {MAX_FILE_BYTES // 1024**2} MB; split it")
            stamp = _get_stamp(stat)
            return _FileContent(handle.read(), hash_content([os.fsencode(path.name).hex(), *stamp])[:16], stamp)

    def store_prompts(
        self, prompts: list[IncomingPrompt], keys: list[str], source: str, batch: str, dry_run: bool = False
    ) -> InboxSummary:
        """Append the new prompts. Those that an interrupted attempt at the same file stored count as new too."""
        accepted: dict[str, list[AcceptedPrompt]] = {}
        counts: Counter[str] = Counter()
        masked_counts: Counter[str] = Counter()
        held_out = duplicates = 0
        seen: set[str] = set()
        now = datetime.now(UTC).isoformat(timespec="seconds")
        for prompt, key in zip(prompts, keys, strict=True):
            masked, messages, masked_values = self._mask_prompt(prompt)
            raw_key, masked_key = _make_key(prompt.text, prompt.messages), _make_key(masked, messages)
            known_batch, known_slice = self.known.get(masked_key, self.known.get(raw_key, (None, key)))
            if {normalize_text(prompt.text), normalize_text(masked)} & self.held_out:
                held_out += 1
                continue
            if masked_key in seen or known_batch not in (None, batch):
                duplicates += 1
                continue
            seen.add(masked_key)
            masked_counts.update(masked_values)
            counts[known_slice] += 1
            if known_batch is None:
                id_ = mask_id(prompt.id, self.spec.phone_regions) if prompt.id is not None else None
                row = AcceptedPrompt(
                    text=masked.strip(), source=source, batch=batch, accepted_at=now, id=id_, messages=messages
                )
                accepted.setdefault(key, []).append(row)
        for key, rows in sorted(accepted.items()) if not dry_run else ():
            append_accepted(get_accepted_path(self.accepted, key), rows)
            self.known |= {_make_key(row.text, row.messages): (batch, key) for row in rows}
        by_slice, by_kind = dict(sorted(counts.items())), dict(sorted(masked_counts.items()))
        return InboxSummary(source, "accepted", "", by_slice, by_kind, held_out, duplicates)

    def _finish(self, path: Path, content: _FileContent, summary: InboxSummary) -> InboxSummary:
        """Write the summary, then remove the file from the inbox."""
        if _get_stamp(path.lstat()) != content.stamp:
            return InboxSummary(summary.file, "waiting", "changed while it was read; its first part is stored")
        folder = self.inbox / DONE_FOLDER
        folder.mkdir(exist_ok=True)
        target = next(name for name in _generate_names(folder, path) if _is_free(name, content.batch))
        value = {"file": summary.file, "batch": content.batch, **summary.get_counts()}
        write_atomically(target.with_name(f"{target.name}.json"), json.dumps(value, indent=2) + "\n")
        if self.spec.keep_files:
            path.rename(target)
        else:
            path.unlink()
        sync_folder(folder)
        sync_folder(self.inbox)
        return summary

    def _reject(self, path: Path, name: str, problems: list[str], lines: int) -> InboxSummary:
        """Write the problems next to the file, then move both out of the inbox."""
        folder = self.inbox / REJECTED_FOLDER
        folder.mkdir(exist_ok=True)
        target = next(name for name in _generate_names(folder, path) if not name.exists())
        count = f"{len(problems)} of {count_noun(lines, 'line')}" if lines > 1 else "its line"
        reason = [
            f"{name} was rejected for {count}. No prompt of it was stored.",
            *problems,
            "Fix or remove these lines, and put the file back into the inbox. A program should write files there under",
            "a name that ends with .part, and rename them when they are complete.",
            "The rejected file next to this one is not masked.",
        ]
        write_atomically(target.with_name(f"{target.name}.reason.txt"), "\n".join(reason) + "\n")
        path.rename(target)
        sync_folder(folder)
        sync_folder(self.inbox)
        return InboxSummary(
            name, "rejected", f"{problems[0]} See {REJECTED_FOLDER}/{sanitize_file_name(target)}.reason.txt"
        )


def sanitize_file_name(path: Path) -> str:
    """A file's name as it may be printed and stored: masked, printable and at most 200 characters."""
    name = os.fsencode(path.name).decode("utf-8", "replace")
    return mask_text("".join(c if c.isprintable() else "?" for c in name)[:200]).text


def _make_key(text: str, messages: Sequence[Turn] | None) -> str:
    """What makes two prompts the same: the text, or all turns of a conversation."""
    if not messages:
        return normalize_text(text)
    return normalize_text("\n".join(f"{turn.role}: {turn.content}" for turn in messages))


def _get_stamp(stat: os.stat_result) -> tuple[int, int, int]:
    return (stat.st_ino, stat.st_mtime_ns, stat.st_size)


def _generate_names(folder: Path, path: Path) -> Iterator[Path]:
    """The path of the file in another folder, then the same with a number, without end."""
    yield folder / path.name
    for number in itertools.count(2):
        yield folder / f"{path.stem}-{number}{path.suffix}"


def _is_free(target: Path, batch: str) -> bool:
    """Whether `target` overwrites nothing except the summary of an interrupted attempt at the same file."""
    summary = target.with_name(f"{target.name}.json")
    if target.exists():
        return False
    if not summary.exists():
        return True
    try:
        return bool(json.loads(summary.read_text())["batch"] == batch)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _parse_file(raw: bytes, spec: InboxSpec) -> tuple[list[IncomingPrompt], list[str]]:
    """The prompts of a file, and one message for each malformed line."""
    prompts: list[IncomingPrompt] = []
    problems: list[str] = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            prompts.append(_parse_line(line, spec))
        except ValueError as error:
            problems.append(f"line {number}: {error}")
    if not prompts and not problems:
        problems.append("line 1: the file is empty. Expected: one JSON object on each line. Add them.")
    return prompts, problems


def _count_lines(raw: bytes) -> int:
    """The number of lines that a file contains something in."""
    return sum(bool(line.strip()) for line in raw.split(b"\n"))


def _parse_line(line: bytes, spec: InboxSpec) -> IncomingPrompt:
    name = spec.text_field
    try:
        value = json.loads(line.decode("utf-8"), object_pairs_hook=reject_repeated_fields)
    except UnicodeDecodeError as error:
        raise ValueError(f"invalid UTF-8 at byte {error.start + 1}. Expected: UTF-8. Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"malformed JSON at column {error.colno}. Expected: one JSON object on each line. Fix the line."
        ) from None
    except (ValueError, RecursionError) as error:  # a number with thousands of digits, deep nesting
        if str(error).startswith("duplicate field"):
            raise ValueError(f"{mask_text(str(error)).text}. Expected: each field once. Remove one of them.") from None
        raise ValueError("unreadable JSON. Expected: one plain JSON object. Simplify the line.") from None
    if not isinstance(value, dict):
        raise ValueError("not an object. Expected: a JSON object with a text. Write {" + f'"{name}": "…"' + "}.")
    if name not in value:
        raise ValueError(
            f"the field {name!r} is missing. Expected: the prompt's text. Add it, or name its field in task.yaml."
        )
    text = value[name]
    if not isinstance(text, str):
        kind = _JSON_TYPES.get(type(text), "null")
        raise ValueError(f"the field {name!r} is {kind}. Expected: a text. Quote it.")
    if not text.strip():
        raise ValueError(f"the field {name!r} is empty. Expected: the prompt's text. Write it, or remove the line.")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"the field {name!r} contains an unpaired surrogate. Expected: Unicode. Fix it.") from None
    return IncomingPrompt(text, value)


def assign_slices(prompts: list[IncomingPrompt], spec: InboxSpec) -> list[str]:
    """The slice of each prompt: the one it names, else that of the first rule that matches, else `unsorted`."""
    keys: list[str | None] = []
    for prompt in prompts:
        named = prompt.slice or prompt.fields.get(spec.slice_field)
        keys.append(named if isinstance(named, str) and SLICE_KEY_PATTERN.fullmatch(named) else None)
    for rule in spec.rules:
        values = [_format_field(prompt.fields.get(rule.field or spec.text_field)) for prompt in prompts]
        matches = pl.Series(values, dtype=pl.String).str.contains(rule.matches).fill_null(False)
        keys = [rule.slice if key is None and match else key for key, match in zip(keys, matches, strict=True)]
    return [key or UNSORTED_SLICE for key in keys]


def _format_field(value: Any) -> str | None:
    """The text of a field that a rule is matched with: numbers and booleans as in JSON, null for anything else."""
    if isinstance(value, str):
        return str(replace_surrogates(value))
    return json.dumps(value) if isinstance(value, bool | int | float) else None
